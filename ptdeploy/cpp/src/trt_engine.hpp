// A deserialized TensorRT or TensorRT-RTX engine, its tensors, and a pool of execution contexts.
#pragma once

#include <NvInferRuntime.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda.hpp"
#include "engine_info.hpp"

namespace ptdeploy::detail {

// Silent: TensorRT's last error becomes the message of ours.
class TrtLogger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override;
  std::string last_error() const;
  void clear();

 private:
  mutable std::mutex mutex_;
  std::string error_;
};

// The library's name and version, such as "TensorRT 10.15.1.29".
Flavor trt_flavor();
std::string trt_version();
std::string trt_name();

// That a request has no room in the GPU's memory.
OutOfMemory too_large_for_gpu(const std::string& reason);

// An execution context in one profile, with its own stream: what one run uses at a time.
struct TrtLane {
  std::unique_ptr<nvinfer1::IExecutionContext> context;
  cuda::Stream stream;
  std::size_t profile = 0;
};

class TrtEngine {
 public:
  struct Tensor {
    ElementType type{};
    bool output = false;
    std::string aliased;  // an output's input that it lies over; empty: none
  };

  // `where` names the bundle in messages, `fix` says how to make an engine that loads. Throws
  // TargetUnavailable if the plan cannot be loaded on `device`, BundleError if the engine is not
  // what `profiles` say.
  TrtEngine(const std::string& where, const std::string& plan, std::vector<EngineProfile> profiles,
            const cuda::Device& device, const std::string& fix);

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  const std::vector<EngineProfile>& profiles() const { return profiles_; }

  // A lane in a profile, made if none is free. Throws OutOfMemory where memory runs out for it,
  // else EngineFault.
  std::unique_ptr<TrtLane> take(std::size_t profile);
  void give_back(std::unique_ptr<TrtLane> lane);
  // Puts a run of the engine on its lane's stream. Throws EngineFault.
  void enqueue(TrtLane& lane) const;
  std::string last_error() const { return logger_.last_error(); }

 private:
  void configure();
  nvinfer1::IExecutionContext* new_context(std::size_t profile);
  void read_tensors();
  [[noreturn]] void refuse_lane(const std::string& what, std::size_t profile) const;

  // In the order in which TensorRT needs them: the last is gone first.
  mutable TrtLogger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#ifdef TRT_MAJOR_RTX
  std::vector<std::unique_ptr<nvinfer1::IRuntimeConfig>> configs_;  // of each profile
  std::unique_ptr<nvinfer1::IRuntimeCache> kernels_;
#endif
  std::vector<EngineProfile> profiles_;
  std::map<std::string, Tensor> tensors_;
  std::mutex mutex_;
  std::map<std::size_t, std::vector<std::unique_ptr<TrtLane>>> free_;
};

}  // namespace ptdeploy::detail
