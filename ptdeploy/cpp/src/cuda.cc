#include "cuda.hpp"

#include <algorithm>
#include <new>

namespace ptdeploy::detail::cuda {
namespace {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is told here, and to no library that asks later for what failed last
  throw EngineFault(std::string(call) + ": " + cudaGetErrorString(status) + ".");
}

template <class Allocate>
Placed allocated(Allocate allocate, cudaError_t (*free)(void*), const char* call,
                 std::size_t bytes) {
  void* memory = nullptr;
  // Nothing to hold still needs an address that TensorRT takes.
  const cudaError_t status = allocate(&memory, std::max<std::size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is told here, and to nobody again
    throw std::bad_alloc();
  }
  check(status, call);
  return Placed(static_cast<char*>(memory), [free](char* held) { free(held); });
}

}  // namespace

std::string unavailable() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return std::string("CUDA: ") + cudaGetErrorString(status);
  return count > 0 ? "" : "CUDA finds no GPU";
}

Device current_device() {
  Device device;
  check(cudaGetDevice(&device.index), "cudaGetDevice");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device.index), "cudaGetDeviceProperties");
  device.name = properties.name;
  device.major = properties.major;
  device.minor = properties.minor;
  return device;
}

Use::Use(int device) {
  check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
}

Use::~Use() { cudaSetDevice(before_); }

Placed device_memory(std::size_t bytes) {
  auto allocate = [](void** memory, std::size_t size) { return cudaMalloc(memory, size); };
  return allocated(allocate, cudaFree, "cudaMalloc", bytes);
}

Placed pinned_memory(std::size_t bytes) {
  auto allocate = [](void** memory, std::size_t size) { return cudaMallocHost(memory, size); };
  return allocated(allocate, cudaFreeHost, "cudaMallocHost", bytes);
}

Graph::Graph(cudaGraph_t recorded) : instance_(nullptr, cudaGraphExecDestroy) {
  cudaGraphExec_t instance = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&instance, recorded, 0);
  cudaGraphDestroy(recorded);
  check(status, "cudaGraphInstantiate");
  instance_.reset(instance);
}

void Graph::launch(cudaStream_t stream) {
  check(cudaGraphLaunch(instance_.get(), stream), "cudaGraphLaunch");
}

Stream::Stream() : stream_(nullptr, cudaStreamDestroy) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  stream_.reset(stream);
}

void Stream::upload(char* to, const char* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, get()), "cudaMemcpyAsync");
}

void Stream::download(char* to, const char* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, get()), "cudaMemcpyAsync");
}

void Stream::clear(char* memory, std::size_t bytes) {
  check(cudaMemsetAsync(memory, 0, bytes, get()), "cudaMemsetAsync");
}

void Stream::copy(const LineCopy& lines) {
  // Which side is the GPU's, CUDA tells by the addresses. Its pitches end below 2 GiB, and a line
  // alone has no need of one.
  if (lines.lines == 1) {
    check(cudaMemcpyAsync(lines.to, lines.from, lines.bytes, cudaMemcpyDefault, get()),
          "cudaMemcpyAsync");
    return;
  }
  check(cudaMemcpy2DAsync(lines.to, lines.to_pitch, lines.from, lines.from_pitch, lines.bytes,
                          lines.lines, cudaMemcpyDefault, get()),
        "cudaMemcpy2DAsync");
}

void Stream::wait() { check(cudaStreamSynchronize(get()), "cudaStreamSynchronize"); }

std::unique_ptr<Graph> Stream::capture(const std::function<void()>& work) {
  // Only this thread's calls count: another may allocate meanwhile.
  check(cudaStreamBeginCapture(get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    // An open capture would make the stream useless to whoever comes next.
    if (cudaStreamEndCapture(get(), &graph) != cudaSuccess) cudaGetLastError();
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(get(), &graph), "cudaStreamEndCapture");
  return std::make_unique<Graph>(graph);
}

}  // namespace ptdeploy::detail::cuda
