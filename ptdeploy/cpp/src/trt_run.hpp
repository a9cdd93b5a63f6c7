// A run of a TensorRT engine over memory that stays: one step, recorded as a CUDA graph.
#pragma once

#include "trt_engine.hpp"

namespace ptdeploy::detail {

// Arrays on the host that cross to the GPU or back in one copy: packed in pinned memory and in the
// GPU's, each at an address that TensorRT takes.
class TrtStaging {
 public:
  // Throws OutOfMemory.
  explicit TrtStaging(const std::vector<Bound>& bounds);
  // Where a bound array is for the engine: its place here, or its own if it was placed.
  char* address(const Bound& bound) const;
  void gather();   // from the arrays into pinned memory
  void scatter();  // and back
  void upload(cuda::Stream& stream) const;
  void download(cuda::Stream& stream) const;

 private:
  struct Piece {
    std::string name;
    char* data;
    std::size_t offset, bytes;
  };
  std::vector<Piece> pieces_;
  std::size_t size_ = 0;
  Placed pinned_, device_;
};

// Keeps a lane from its first run on, until it is gone.
class TrtRun final : public Run {
 public:
  // Throws InputError if the engine has no profile for the shapes, BundleError if the engine is not
  // what the manifest says, OutOfMemory.
  TrtRun(TrtEngine& engine, int device, const std::vector<Bound>& inputs,
         const std::vector<Bound>& outputs);
  ~TrtRun() override;
  void operator()() override;

 private:
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    char* address;
    bool output;
  };
  void add(const Bound& bound, const TrtStaging& staging, bool output);
  void check_aliases() const;
  std::unique_ptr<TrtLane> prepare();
  void record();
  void work();

  TrtEngine& engine_;
  int device_;
  TrtStaging in_, out_;
  std::vector<Tensor> tensors_;
  std::size_t profile_ = 0;
  std::unique_ptr<TrtLane> lane_;
  std::unique_ptr<cuda::Graph> graph_;
  int runs_ = 0;  // before it is recorded
};

}  // namespace ptdeploy::detail
