// The TensorRT backend's runs over a CUDA and an engine that are defined here, on the host: what
// they do where something fails. What is enqueued runs at once, or when its graph is launched if it
// was recorded; the engine gives y = 2 x.
//   trt_steps PLAN WHAT [REASON]
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <vector>

#include "trt_run.hpp"

namespace {

std::string what, reason;
nvinfer1::ILogger* logger;
nvinfer1::Dims shape;
std::int64_t *x, *y;
bool recording, full;
std::vector<std::function<void()>> recorded;
std::map<const void*, std::string> strategies;
int graphs, begun, launched, pitched;

void enqueue(std::function<void()> work) { recording ? recorded.push_back(work) : work(); }

cudaError_t unless(const char* fails) {
  return what == fails ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t allocate(void** memory, std::size_t size) {
  if (full) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
  return cudaSuccess;
}

cudaError_t release(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

bool refuse(bool refuses) {
  if (refuses) logger->log(nvinfer1::ILogger::Severity::kERROR, reason.c_str());
  return !refuses;
}

}  // namespace

extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "for a test"; }
cudaError_t cudaMalloc(void** memory, std::size_t size) { return allocate(memory, size); }
cudaError_t cudaMallocHost(void** memory, std::size_t size) { return allocate(memory, size); }
cudaError_t cudaFree(void* memory) { return release(memory); }
cudaError_t cudaFreeHost(void* memory) { return release(memory); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = reinterpret_cast<cudaStream_t>(1), cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind,
                            cudaStream_t) {
  return enqueue([=] { std::memcpy(to, from, size); }), cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void*, std::size_t to_pitch, const void*, std::size_t from_pitch,
                              std::size_t, std::size_t, cudaMemcpyKind, cudaStream_t) {
  ++pitched;
  const std::size_t most = (std::size_t{1} << 31) - 1;
  return to_pitch > most || from_pitch > most ? cudaErrorInvalidPitchValue : cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  ++begun;
  if (what == "begin") return cudaErrorUnknown;
  return recording = true, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  recording = false;
  *graph = nullptr;
  if (what == "end") return cudaErrorUnknown;
  ++graphs;
  return *graph = reinterpret_cast<cudaGraph_t>(1), cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* instance, cudaGraph_t, unsigned long long) {
  return *instance = reinterpret_cast<cudaGraphExec_t>(1), unless("instantiate");
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return --graphs, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  ++launched;
  for (const auto& work : recorded) work();
  return cudaSuccess;
}
std::int32_t getInferLibMajorVersion() noexcept { return 1; }
std::int32_t getInferLibMinorVersion() noexcept { return 7; }
std::int32_t getInferLibPatchVersion() noexcept { return 1; }
std::int32_t getInferLibBuildVersion() noexcept { return 116; }
}

namespace nvinfer1 {

IRuntime* createInferRuntime(ILogger& given) noexcept { return logger = &given, new IRuntime; }
ICudaEngine* IRuntime::deserializeCudaEngine(const void*, std::size_t) noexcept {
  return refuse(what == "plan") ? new ICudaEngine : nullptr;
}
EngineValidity IRuntime::getEngineValidity(const void*, std::int64_t,
                                           std::uint64_t*) const noexcept {
  return EngineValidity::kVALID;
}
std::int32_t ICudaEngine::getNbOptimizationProfiles() const noexcept {
  return what == "kernels" ? 2 : 1;
}
std::int64_t ICudaEngine::getDeviceMemorySizeForProfileV2(std::int32_t profile) const noexcept {
  return (std::int64_t{9460} << 20) + 1 + profile;
}
std::int32_t ICudaEngine::getNbIOTensors() const noexcept { return 2; }
const char* ICudaEngine::getIOTensorName(std::int32_t index) const noexcept {
  return index == 0 ? "x" : "y";
}
DataType ICudaEngine::getTensorDataType(const char*) const noexcept { return DataType::kINT64; }
TensorLocation ICudaEngine::getTensorLocation(const char*) const noexcept {
  return TensorLocation::kDEVICE;
}
TensorIOMode ICudaEngine::getTensorIOMode(const char* name) const noexcept {
  return *name == 'x' ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}
const char* ICudaEngine::getAliasedInputTensor(const char*) const noexcept {
  return what == "aliased" ? "x" : nullptr;
}
IRuntimeConfig* ICudaEngine::createRuntimeConfig() noexcept { return new IRuntimeConfig; }
IRuntimeCache* IRuntimeConfig::createRuntimeCache() const noexcept { return new IRuntimeCache; }
bool IRuntimeConfig::setRuntimeCache(const IRuntimeCache&) noexcept { return true; }
void IRuntimeConfig::setExecutionContextAllocationStrategy(
    ExecutionContextAllocationStrategy) noexcept {}
void IRuntimeConfig::setDynamicShapesKernelSpecializationStrategy(
    DynamicShapesKernelSpecializationStrategy strategy) noexcept {
  strategies[this] = strategy == DynamicShapesKernelSpecializationStrategy::kEAGER ? "eager" : "lazy";
}
IExecutionContext* ICudaEngine::createExecutionContext(IRuntimeConfig* config) noexcept {
  if (what == "kernels") std::cout << strategies[config] << ' ';
  return refuse(what == "context") ? new IExecutionContext : nullptr;
}
bool IExecutionContext::setOptimizationProfileAsync(std::int32_t, cudaStream_t) noexcept {
  return refuse(what == "profile");
}
bool IExecutionContext::setInputShape(const char*, const Dims& given) noexcept {
  return shape = given, true;
}
Dims IExecutionContext::getTensorShape(const char*) const noexcept { return shape; }
bool IExecutionContext::setTensorAddress(const char* name, void* data) noexcept {
  return (*name == 'x' ? x : y) = static_cast<std::int64_t*>(data), true;
}
bool IExecutionContext::isStreamCapturable(cudaStream_t) const noexcept {
  return what != "uncapturable";
}
bool IExecutionContext::enqueueV3(cudaStream_t) noexcept {
  if (recording && what == "enqueue") return refuse(true);
  enqueue([] {
    for (std::int64_t i = 0; i < shape.d[0]; ++i) y[i] = 2 * x[i];
  });
  return true;
}

}  // namespace nvinfer1

namespace {

using namespace ptdeploy::detail;

void copy_a_long_line() {
  const std::size_t pitch = std::size_t{3} << 30;
  char from[] = "line", to[] = "none";
  cuda::Stream().copy({to, pitch, from, pitch, 4, 1});
  std::cout << to << ' ' << pitched;
}

void run_steps(TrtEngine& engine) {
  std::vector<std::int64_t> given(3), got(3);
  Placed shared = cuda::device_memory(24);
  const bool placed = what == "shared" || what == "aliased";
  const auto bound = [&](const char* name, std::vector<std::int64_t>& memory) {
    void* data = placed ? static_cast<void*>(shared.get()) : memory.data();
    return std::vector<Bound>{{name, ElementType::int64, {3}, data, placed}};
  };
  full = what == "memory";
  TrtRun step(engine, 0, bound("x", given), bound("y", got));
  bool right = true;
  for (std::int64_t value = 1; value < 7; ++value) {
    given.assign(3, value);
    step();
    right &= placed || got == std::vector<std::int64_t>(3, 2 * value);
  }
  std::cout << (right ? "right" : "WRONG") << ' ' << begun << ' ' << launched << ' ' << graphs;
}

}  // namespace

int main(int count, char** words) {
  what = words[2];
  if (count > 3) reason = words[3];
  try {
    if (what == "copy") return copy_a_long_line(), 0;
    std::vector<EngineProfile> profiles{{{{"x", {1}, {8}}}, "decode"}};
    if (what == "kernels") profiles.push_back({{{"x", {1}, {8}}}, "prefill"});
    TrtEngine engine("bundle", words[1], profiles, {}, "");
    if (what == "kernels") return engine.take(0), engine.take(1), 0;
    run_steps(engine);
  } catch (const ptdeploy::OutOfMemory& error) {
    std::cout << "OutOfMemory: " << error.what();
  } catch (const ptdeploy::InputError& error) {
    std::cout << "InputError: " << error.what();
  } catch (const ptdeploy::EngineFault& error) {
    std::cout << "EngineFault: " << error.what();
  } catch (const ptdeploy::TargetUnavailable& error) {
    std::cout << "TargetUnavailable: " << error.what();
  } catch (const ptdeploy::BundleError& error) {
    std::cout << "BundleError: " << error.what();
  }
}
