// CUDA memory, streams and graphs; nothing here knows of TensorRT.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "backend.hpp"

namespace ptdeploy::detail::cuda {

// Why no GPU can be used here, or empty if one can.
std::string unavailable();

struct Device {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // its compute capability
};
// The calling thread's current GPU. Throws EngineFault.
Device current_device();

// Makes a GPU the calling thread's current one, and the earlier one again at its end: a thread
// starts with the first, whatever another thread has chosen.
class Use {
 public:
  explicit Use(int device);
  ~Use();
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  int before_ = 0;
};

// Memory on the current GPU. Throws std::bad_alloc if it does not fit.
Placed device_memory(std::size_t bytes);
// Memory on the host that the GPU copies from and to by itself. Throws std::bad_alloc.
Placed pinned_memory(std::size_t bytes);

// Work recorded once and launched as one.
class Graph {
 public:
  explicit Graph(cudaGraph_t recorded);
  void launch(cudaStream_t stream);

 private:
  std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, cudaError_t (*)(cudaGraphExec_t)>
      instance_;
};

// A stream of its own on the current GPU, which does not wait for the default one.
class Stream {
 public:
  Stream();
  cudaStream_t get() const { return stream_.get(); }

  // Each throws EngineFault if that or what was enqueued before has failed.
  void upload(char* to, const char* from, std::size_t bytes);
  void download(char* to, const char* from, std::size_t bytes);
  void clear(char* memory, std::size_t bytes);
  void copy(const LineCopy& lines);
  void wait();

  // The graph of what `work` enqueues here; nothing of it runs yet.
  std::unique_ptr<Graph> capture(const std::function<void()>& work);

 private:
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, cudaError_t (*)(cudaStream_t)> stream_;
};

}  // namespace ptdeploy::detail::cuda
