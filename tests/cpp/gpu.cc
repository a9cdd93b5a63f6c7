// The CUDA part of the TensorRT backend, alone: says why there is no GPU, or uses it.
#include <cstring>
#include <iostream>

#include "cuda.hpp"

namespace {

using namespace ptdeploy::detail;

// Two lines of four letters go to the GPU, between two others there, and back, as a graph.
bool copies_there_and_back() {
  const cuda::Use use(cuda::current_device().index);
  cuda::Stream stream;
  Placed near = cuda::pinned_memory(16), far = cuda::device_memory(16);
  Placed back = cuda::pinned_memory(16);
  std::memcpy(near.get(), "abcdefgh", 8);
  auto graph = stream.capture([&] {
    stream.clear(far.get(), 16);
    stream.copy({far.get() + 4, 8, near.get(), 4, 4, 2});
    stream.download(back.get(), far.get(), 16);
  });
  for (int i = 0; i < 2; ++i) graph->launch(stream.get());
  stream.wait();
  return std::memcmp(back.get(), "\0\0\0\0abcd\0\0\0\0efgh", 16) == 0;
}

}  // namespace

int main() {
  const std::string problem = cuda::unavailable();
  std::cout << (problem.empty() ? copies_there_and_back() ? "works" : "WRONG" : problem);
}
