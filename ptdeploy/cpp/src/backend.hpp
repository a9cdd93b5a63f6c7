// What runs engine files. One file each: add backend_NAME.cc and a line in open_backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "block_cache.hpp"
#include "bundle.hpp"
#include "element_type.hpp"
#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {

// Memory that a run reads or writes, contiguous: the caller's, on the CPU, or the engine's own.
struct Bound {
  std::string name;
  ElementType type = ElementType::float32;
  std::vector<std::int64_t> shape;
  void* data = nullptr;
  bool placed = false;  // `data` is from Backend::place
};

// Memory where the engine computes, which need not be the CPU's: only the engine and
// Backend::copy look into it. Parts of it are addressed by adding bytes.
using Placed = std::shared_ptr<char>;

// `lines` pieces of `bytes` each, which lie `pitch` bytes apart, copied from one memory to another;
// either may be placed.
struct LineCopy {
  char* to = nullptr;
  std::size_t to_pitch = 0;
  const char* from = nullptr;
  std::size_t from_pitch = 0, bytes = 0, lines = 0;
};

// A run over bound memory: call it as often as you like, each time over what the memory then
// holds. Throws EngineFault or OutOfMemory.
class Run {
 public:
  virtual ~Run() = default;
  virtual void operator()() = 0;
};

// A loaded engine, which its runs and its placed memory must not outlive. Any number of threads may
// use it at once, each its own Run. The same memory may be an input and an output: the engine then
// updates it in place.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<Run> bind(const std::vector<Bound>& inputs,
                                    const std::vector<Bound>& outputs) = 0;
  // Zeros. Throws std::bad_alloc if they do not fit.
  virtual Placed place(std::size_t bytes) = 0;
  // Returns when all are copied. No two may overlap.
  virtual void copy(const std::vector<LineCopy>& copies) = 0;
  // Throws BundleError unless the engine's inputs and outputs are those of the bundle's manifest.
  virtual void check(const Bundle& bundle) const = 0;
  // Whether placed memory is this process's own.
  virtual bool in_host_memory() const = 0;
  // Whether it runs over keys and values of this type.
  virtual bool caches(ElementType type) const = 0;
  // How it keeps keys and values in blocks; null where they lie as the graph has them.
  virtual const BlockCache* cache() const { return nullptr; }
};

// Opens a bundle's engine by its target. Throws InputError if this library has no such target,
// TargetUnavailable if it cannot run on the device, OutOfMemory if it does not fit, BundleError if
// the files cannot be loaded.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, const OpenOptions& options);

// Why a target with these devices runs on none of what others run on, and what to do.
TargetUnavailable of_another_target(const std::string& target, const std::string& own,
                                    const std::string& device);

std::unique_ptr<Backend> open_ort(const Bundle& bundle, const OpenOptions& options);
#ifdef PTDEPLOY_OPENVINO
std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const OpenOptions& options);
#endif
#ifdef PTDEPLOY_TENSORRT
std::unique_ptr<Backend> open_trt(const Bundle& bundle, const OpenOptions& options);
#endif

}  // namespace ptdeploy::detail
