// What runs engine files. One file each: add backend_NAME.cc and a line in open_backend.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {

enum class ElementType { float32, int64 };

// Memory of the caller's, contiguous, on the CPU, that a run reads or writes.
struct Bound {
  std::string name;
  ElementType type = ElementType::float32;
  std::vector<std::int64_t> shape;
  void* data = nullptr;
};

// A run over bound memory: call it as often as you like, each time over what the memory then
// holds. Throws EngineFault.
class Run {
 public:
  virtual ~Run() = default;
  virtual void operator()() = 0;
};

// A loaded engine. Any number of threads may bind and run at once, each its own Run. The same
// memory may be an input and an output: the engine then updates it in place.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::unique_ptr<Run> bind(const std::vector<Bound>& inputs,
                                    const std::vector<Bound>& outputs) = 0;
};

// Opens a bundle's engine by its target. Throws InputError if this library has no such target,
// TargetUnavailable if it cannot run on the device, BundleError if the files cannot be loaded.
std::unique_ptr<Backend> open_backend(const Bundle& bundle, const OpenOptions& options);

std::unique_ptr<Backend> open_ort(const Bundle& bundle, const OpenOptions& options);

}  // namespace ptdeploy::detail
