// TensorRT and TensorRT-RTX: the engine file is a plan, with what it was built for beside it.
// Written to the documented API, see docs/cpp.md: never run.
#include <map>
#include <mutex>
#include <new>

#include "backend.hpp"
#include "engine_fit.hpp"
#include "schema.hpp"
#include "trt_run.hpp"

namespace ptdeploy::detail {
namespace {

std::string fix_for(const Bundle& bundle) {
  return how_to_rebuild(bundle.path, !bundle.file("model").empty());
}

class TrtBackend final : public Backend {
 public:
  TrtBackend(const Bundle& bundle, const std::string& plan, EngineInfo info,
             const cuda::Device& device)
      : device_(device.index),
        engine_(bundle.path, plan, std::move(info.profiles), device, fix_for(bundle)) {}

  std::unique_ptr<Run> bind(const std::vector<Bound>& inputs,
                            const std::vector<Bound>& outputs) override {
    const cuda::Use use(device_);
    return std::make_unique<TrtRun>(engine_, device_, inputs, outputs);
  }

  Placed place(std::size_t bytes) override {
    const cuda::Use use(device_);
    Placed memory = cuda::device_memory(bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    copies_.clear(memory.get(), bytes);
    copies_.wait();
    return memory;
  }

  void copy(const std::vector<LineCopy>& copies) override {
    const cuda::Use use(device_);
    std::lock_guard<std::mutex> lock(mutex_);
    for (const LineCopy& one : copies) copies_.copy(one);
    copies_.wait();
  }

  void check(const Bundle& bundle) const override {
    const Graph& graph = bundle.manifest.graph();
    std::map<std::string, std::pair<std::string, bool>> wanted, found;
    for (const TensorSpec& spec : graph.inputs) wanted[spec.name] = {spec.dtype, false};
    for (const TensorSpec& spec : graph.outputs) wanted[spec.name] = {spec.dtype, true};
    for (const auto& [name, tensor] : engine_.tensors())
      found[name] = {name_of(tensor.type), tensor.output};
    if (found != wanted)
      throw BundleError(
          bundle.path + ": its engine has other inputs or outputs than its manifest lists.",
          "Compile the checkpoint again.");
  }

  bool in_host_memory() const override { return false; }

  bool caches(ElementType) const override { return true; }

 private:
  int device_;
  TrtEngine engine_;
  std::mutex mutex_;
  cuda::Stream copies_;
};

void refuse_unsupported(const Bundle& bundle, const EngineInfo& info) {
  if (info.version_compatible)
    throw TargetUnavailable(bundle.path +
                                ": a version compatible engine holds code that runs on the host, "
                                "which the C++ library does not load.",
                            "Compile without --version-compatible, or run the bundle in Python.");
  if (info.strip_weights)
    throw TargetUnavailable(
        bundle.path + ": its engine has no weights, and the C++ library cannot give it any.",
        "Compile without --strip-weights, or run the bundle in Python.");
}

}  // namespace

std::unique_ptr<Backend> open_trt(const Bundle& bundle, const OpenOptions& options) {
  if (options.threads > 0 || options.map_weights)
    throw InputError(std::string(options.map_weights ? "map_weights" : "threads") +
                     " is about a CPU; this engine runs on a GPU.");
  const std::string device = options.device.empty() ? bundle.manifest.device : options.device;
  if (device != "cuda") throw of_another_target("trt", "cuda", device);
  const std::string problem = cuda::unavailable();
  if (!problem.empty())
    throw TargetUnavailable("The target trt needs an NVIDIA GPU to run (" + problem + ").");
  const std::string plan = bundle.opened("engine");
  if (plan.empty()) throw BundleError(bundle.path + ": lists no file with the role 'engine'.");
  EngineInfo info = bundle.reading("engine_info", read_engine_info);
  const cuda::Device gpu = cuda::current_device();
  const EngineHost host{trt_flavor(), trt_version(), gpu.name, gpu.major, gpu.minor};
  const std::string wrong = why_not_here(info, host);
  if (!wrong.empty())
    throw TargetUnavailable(wrong,
                            how_to_fit(info, host, bundle.path, !bundle.file("model").empty()));
  refuse_unsupported(bundle, info);
  return bundle.reading("engine", [&](const std::string& path) {
    return std::make_unique<TrtBackend>(bundle, path, std::move(info), gpu);
  });
}

}  // namespace ptdeploy::detail
