// Declarations of what is used, see README.md beside this file: not NVIDIA's header, and of no use
// to link or run TensorRT with. ../trt_steps.cc defines them, for a test on the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "NvInferVersion.h"

extern "C" std::int32_t getInferLibMajorVersion() noexcept;
extern "C" std::int32_t getInferLibMinorVersion() noexcept;
extern "C" std::int32_t getInferLibPatchVersion() noexcept;
extern "C" std::int32_t getInferLibBuildVersion() noexcept;

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : std::int32_t {
  kFLOAT = 0,
  kHALF = 1,
  kINT8 = 2,
  kINT32 = 3,
  kBOOL = 4,
  kUINT8 = 5,
  kFP8 = 6,
  kBF16 = 7,
  kINT64 = 8,
  kINT4 = 9
};
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class TensorLocation : std::int32_t { kDEVICE = 0, kHOST = 1 };
enum class ExecutionContextAllocationStrategy : std::int32_t {
  kSTATIC = 0,
  kON_PROFILE_CHANGE = 1,
  kUSER_MANAGED = 2
};

struct Dims64 {
  static constexpr std::int32_t MAX_DIMS = 8;
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};
using Dims = Dims64;

class ILogger {
 public:
  enum class Severity : std::int32_t {
    kINTERNAL_ERROR = 0,
    kERROR = 1,
    kWARNING = 2,
    kINFO = 3,
    kVERBOSE = 4
  };
  virtual void log(Severity severity, AsciiChar const* msg) noexcept = 0;
  virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
  virtual ~IExecutionContext() noexcept = default;
  bool setInputShape(char const* tensorName, Dims const& dims) noexcept;
  Dims getTensorShape(char const* tensorName) const noexcept;
  bool setTensorAddress(char const* tensorName, void* data) noexcept;
  bool setOptimizationProfileAsync(std::int32_t profileIndex, cudaStream_t stream) noexcept;
  bool enqueueV3(cudaStream_t stream) noexcept;
#ifdef TRT_MAJOR_RTX
  bool isStreamCapturable(cudaStream_t stream) const noexcept;
#endif
};

#ifdef TRT_MAJOR_RTX
enum class DynamicShapesKernelSpecializationStrategy : std::int32_t {
  kLAZY = 0,
  kEAGER = 1,
  kNONE = 2
};
enum class EngineValidity : std::int32_t { kVALID = 0, kSUBOPTIMAL = 1, kINVALID = 2 };

class IRuntimeCache {
 public:
  virtual ~IRuntimeCache() noexcept = default;
};
#endif

class IRuntimeConfig {
 public:
  virtual ~IRuntimeConfig() noexcept = default;
  void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy strategy) noexcept;
#ifdef TRT_MAJOR_RTX
  IRuntimeCache* createRuntimeCache() const noexcept;
  bool setRuntimeCache(IRuntimeCache const& cache) noexcept;
  void setDynamicShapesKernelSpecializationStrategy(
      DynamicShapesKernelSpecializationStrategy strategy) noexcept;
#endif
};

class ICudaEngine {
 public:
  virtual ~ICudaEngine() noexcept = default;
  std::int32_t getNbIOTensors() const noexcept;
  char const* getIOTensorName(std::int32_t index) const noexcept;
  DataType getTensorDataType(char const* tensorName) const noexcept;
  TensorLocation getTensorLocation(char const* tensorName) const noexcept;
  TensorIOMode getTensorIOMode(char const* tensorName) const noexcept;
  char const* getAliasedInputTensor(char const* tensorName) const noexcept;
  std::int32_t getNbOptimizationProfiles() const noexcept;
  std::int64_t getDeviceMemorySizeForProfileV2(std::int32_t profileIndex) const noexcept;
  IExecutionContext* createExecutionContext(
      ExecutionContextAllocationStrategy strategy =
          ExecutionContextAllocationStrategy::kSTATIC) noexcept;
  IExecutionContext* createExecutionContext(IRuntimeConfig* runtimeConfig) noexcept;
  IRuntimeConfig* createRuntimeConfig() noexcept;
};

class IRuntime {
 public:
  virtual ~IRuntime() noexcept = default;
  ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept;
#ifdef TRT_MAJOR_RTX
  EngineValidity getEngineValidity(void const* blob, std::int64_t blobSize,
                                   std::uint64_t* diagnostics) const noexcept;
#endif
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1
