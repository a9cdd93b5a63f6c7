#include "trt_engine.hpp"

#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "out_of_memory.hpp"

#if !defined(TRT_MAJOR_RTX) && NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR < 1015
#error "ptdeploy needs TensorRT 10.15 or later: the first that updates a KV buffer in place"
#endif

namespace ptdeploy::detail {
namespace {

std::vector<char> read_plan(const std::string& file) {
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  const std::streamoff size = stream.tellg();
  if (size < 0) throw BundleError(file + ": cannot be read.");
  std::vector<char> plan(static_cast<std::size_t>(size));
  stream.seekg(0);
  if (!stream.read(plan.data(), size)) throw BundleError(file + ": cannot be read.");
  return plan;
}

// What the library's own check finds wrong with a plan. TensorRT-RTX has it, full TensorRT has not.
template <class Runtime>
auto invalidity(Runtime& runtime, const std::vector<char>& plan, int)
    -> decltype(runtime.getEngineValidity(plan.data(), std::int64_t{}, nullptr), std::uint64_t{}) {
  std::uint64_t found = 0;
  static_cast<void>(
      runtime.getEngineValidity(plan.data(), static_cast<std::int64_t>(plan.size()), &found));
  return found;
}
template <class Runtime>
std::uint64_t invalidity(Runtime&, const std::vector<char>&, long) {
  return 0;
}

constexpr const char* kTooSmall = "insufficient gpu memory";

std::string words_of(std::uint64_t invalid) {
  // The bits of EngineInvalidityDiagnostics, from the lowest on.
  static constexpr const char* kWords[] = {
      "version mismatch",        "unsupported cc",   "old cuda driver", "old cuda runtime",
      kTooSmall,                 "malformed engine", "cuda error"};
  std::string out;
  for (std::size_t i = 0; i < std::size(kWords); ++i)
    if (invalid >> i & 1) out += (out.empty() ? "" : ", ") + std::string(kWords[i]);
  return out;
}

ElementType type_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return ElementType::float32;
    case nvinfer1::DataType::kHALF:
      return ElementType::float16;
    case nvinfer1::DataType::kBF16:
      return ElementType::bfloat16;
    case nvinfer1::DataType::kINT64:
      return ElementType::int64;
    default:
      throw BundleError("The engine has tensors of a type (number " +
                        std::to_string(static_cast<int>(type)) +
                        " of nvinfer1::DataType) that this version cannot give it.");
  }
}

}  // namespace

void TrtLogger::log(Severity severity, const char* message) noexcept {
  if (severity != Severity::kINTERNAL_ERROR && severity != Severity::kERROR) return;
  try {
    std::lock_guard<std::mutex> lock(mutex_);
    error_ = message;
  } catch (...) {  // no memory for the words: the fault itself is reported all the same
  }
}

std::string TrtLogger::last_error() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (error_.empty()) return "it gives no reason";
  return error_.substr(0, error_.find_last_not_of(". \n") + 1);
}

void TrtLogger::clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  error_.clear();
}

Flavor trt_flavor() {
#ifdef TRT_MAJOR_RTX
  return Flavor::rtx;
#else
  return Flavor::tensorrt;
#endif
}

std::string trt_version() {
  return std::to_string(getInferLibMajorVersion()) + "." +
         std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion()) + "." +
         std::to_string(getInferLibBuildVersion());
}

OutOfMemory too_large_for_gpu(const std::string& reason) {
  return OutOfMemory("The request does not fit in the GPU's memory (" + reason + ").",
                     "Send fewer rows at once, or fewer requests side by side.");
}

std::string trt_name() { return name_of(trt_flavor()) + std::string(" ") + trt_version(); }

TrtEngine::TrtEngine(const std::string& where, const std::string& plan,
                     std::vector<EngineProfile> profiles, const cuda::Device& device,
                     const std::string& fix)
    : runtime_(nvinfer1::createInferRuntime(logger_)), profiles_(std::move(profiles)) {
  if (!runtime_) throw TargetUnavailable(trt_name() + " does not start (" + last_error() + ").");
  {
    const std::vector<char> content = read_plan(plan);
    logger_.clear();
    engine_.reset(runtime_->deserializeCudaEngine(content.data(), content.size()));
    if (!engine_) {
      const std::string said = last_error(), invalid = words_of(invalidity(*runtime_, content, 0));
      const std::runtime_error words(invalid + " " + said);
      if (ran_out_of_memory(words) || invalid.find(kTooSmall) != invalid.npos)
        throw out_of_memory("the engine " + plan + " does not fit", words, "", "cuda");
      throw TargetUnavailable(plan + ": " + trt_name() + " cannot load it on " + device.name +
                                  " (" + (invalid.empty() ? said : invalid) + ").",
                              fix);
    }
  }
  const std::int32_t found = engine_->getNbOptimizationProfiles();
  if (found < 0 || static_cast<std::size_t>(found) != profiles_.size())
    throw BundleError(where + ": its engine has " + std::to_string(found) +
                          " optimization profiles, engine.json " +
                          std::to_string(profiles_.size()) + ".",
                      "Compile the checkpoint again.");
  read_tensors();
  configure();
}

void TrtEngine::read_tensors() {
  for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
    const char* name = engine_->getIOTensorName(i);
    if (engine_->getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE)
      throw BundleError("The engine wants " + std::string(name) +
                        " on the host, which is not supported.");
    Tensor tensor;
    tensor.type = type_of(engine_->getTensorDataType(name));
    tensor.output = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT;
    if (tensor.output)
      if (const char* aliased = engine_->getAliasedInputTensor(name)) tensor.aliased = aliased;
    tensors_[name] = tensor;
  }
}

// Scratch space is that of the context's own profile.
constexpr auto kOwnProfile = nvinfer1::ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE;

#ifdef TRT_MAJOR_RTX
// TensorRT-RTX compiles kernels when it first needs them, once for all contexts. A decode step has
// few shapes and is recorded, so that it waits for the final ones; texts have many, and run on
// general ones until theirs are there.
void TrtEngine::configure() {
  using Strategy = nvinfer1::DynamicShapesKernelSpecializationStrategy;
  for (const EngineProfile& profile : profiles_) {
    std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (config && !kernels_) kernels_.reset(config->createRuntimeCache());
    if (!config || !kernels_ || !config->setRuntimeCache(*kernels_))
      throw EngineFault(trt_name() + " cannot configure its runtime (" + last_error() + ").");
    config->setExecutionContextAllocationStrategy(kOwnProfile);
    config->setDynamicShapesKernelSpecializationStrategy(
        profile.name == "decode" ? Strategy::kEAGER : Strategy::kLAZY);
    configs_.push_back(std::move(config));
  }
}

nvinfer1::IExecutionContext* TrtEngine::new_context(std::size_t profile) {
  return engine_->createExecutionContext(configs_[profile].get());
}
#else
void TrtEngine::configure() {}

nvinfer1::IExecutionContext* TrtEngine::new_context(std::size_t) {
  return engine_->createExecutionContext(kOwnProfile);
}
#endif

std::unique_ptr<TrtLane> TrtEngine::take(std::size_t profile) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& free = free_[profile];
    if (!free.empty()) {
      auto lane = std::move(free.back());
      free.pop_back();
      return lane;
    }
  }
  auto lane = std::make_unique<TrtLane>();
  lane->profile = profile;
  logger_.clear();
  lane->context.reset(new_context(profile));
  if (!lane->context) refuse_lane("make another execution context", profile);
  if (!lane->context->setOptimizationProfileAsync(static_cast<std::int32_t>(profile),
                                                  lane->stream.get()))
    refuse_lane("use the optimization profile " + profiles_[profile].name, profile);
  lane->stream.wait();
  return lane;
}

// TensorRT says in words alone that memory ran out.
void TrtEngine::refuse_lane(const std::string& what, std::size_t profile) const {
  const std::string reason = last_error();
  if (ran_out_of_memory(std::runtime_error(reason))) {
    const auto index = static_cast<std::int32_t>(profile);
    const std::int64_t bytes = engine_->getDeviceMemorySizeForProfileV2(index);
    throw OutOfMemory(
        "The engine's scratch memory does not fit in the GPU's memory: " +
            std::to_string((bytes + (1 << 20) - 1) >> 20) +
            " MiB for the largest request that its profile " + profiles_[profile].name +
            " takes (" + reason + ").",
        "Send fewer requests side by side, or compile with a smaller --profile.");
  }
  throw EngineFault(trt_name() + " cannot " + what + " (" + reason + ").");
}

void TrtEngine::give_back(std::unique_ptr<TrtLane> lane) {
  std::lock_guard<std::mutex> lock(mutex_);
  free_[lane->profile].push_back(std::move(lane));
}

void TrtEngine::enqueue(TrtLane& lane) const {
  if (!lane.context->enqueueV3(lane.stream.get()))
    throw EngineFault(trt_name() + " could not run (" + last_error() + ").");
}

}  // namespace ptdeploy::detail
