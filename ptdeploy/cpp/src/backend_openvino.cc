// OpenVINO: the engine file is the ONNX model, which it compiles for the device when it opens.
#include <openvino/frontend/manager.hpp>
#include <openvino/openvino.hpp>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "cores.hpp"
#include "host_backend.hpp"
#include "layout.hpp"
#include "onnx_bundle.hpp"
#include "openvino_core.hpp"
#include "openvino_errors.hpp"
#include "openvino_info.hpp"
#include "openvino_paged.hpp"
#include "openvino_requests.hpp"
#include "out_of_memory.hpp"
#include "schema.hpp"
#include "ties.hpp"

namespace ptdeploy::detail {
namespace {

// OpenVINO's names of what we call devices, and what computes a precision. Left to itself it takes
// bfloat16 or float16 wherever the device is faster with it.
using Words = std::vector<std::pair<std::string, std::string>>;
const Words kDevices = {{"cpu", "CPU"}, {"gpu", "GPU"}, {"npu", "NPU"}};
const Words kHints = {
    {"fp32", "f32"}, {"bf16", "bf16"}, {"fp16", "f16"}, {"int8", "f32"}, {"int4", "f32"}};

const std::string* word_of(const Words& words, const std::string& key) {
  for (const auto& [name, word] : words)
    if (name == key) return &word;
  return nullptr;
}

// Throws TargetUnavailable unless OpenVINO finds the device here.
void require_device(const std::string& device) {
  ov::Core& core = openvino_core();
  const std::string* name = word_of(kDevices, device);
  if (!name) throw of_another_target("openvino", "cpu, gpu, npu", device);
  std::string listed;
  for (const std::string& one : core.get_available_devices()) {
    // One of several GPUs is GPU.0.
    if (one.substr(0, one.find('.')) == *name) return;
    listed += (listed.empty() ? "" : ", ") + one;
  }
  // It leaves out a device for want of threads, too, and says so where it is asked for by name.
  try {
    core.get_property(*name, ov::device::full_name);
  } catch (const std::exception& error) {
    if (std::string(error.what()).find("Resource temporarily unavailable") != std::string::npos)
      throw TargetUnavailable(
          "This process may start no more threads.",
          "Raise its limit: ulimit -u, or how many processes its container may have.");
  }
  throw TargetUnavailable("OpenVINO finds no " + *name + " here; the devices it finds are: " +
                              (listed.empty() ? "none" : listed) + ".",
                          "Check the device's driver, or choose another device.");
}

// Throws TargetUnavailable if the engine keeps a KV cache: elsewhere its blocks have other shapes.
void refuse_kv(const Bundle& bundle, const std::string& device) {
  if (device == "cpu" || !word_of(kDevices, device)) return;
  if (bundle.manifest.graph().input(TensorRole::past))
    throw TargetUnavailable("The target openvino keeps a KV buffer on cpu only, not on " + device +
                                ", and a model that writes needs one.",
                            "Leave out device, or compile it with --target ort.");
}

// Throws TargetUnavailable unless the device, which is here, computes in the precision: a CPU without
// bfloat16 would convert each number to float32 and back.
void require_precision(const std::string& device, const std::string& precision) {
  if (precision != "bf16") return;
  const std::string& name = *word_of(kDevices, device);
  const auto can = openvino_core().get_property(name, ov::device::capabilities);
  if (std::find(can.begin(), can.end(), "BF16") == can.end())
    throw TargetUnavailable(
        "This machine's " + name + " does not compute in bfloat16, says OpenVINO.",
        "Compile with --precision fp32, or run it on a machine that does.");
}

ov::AnyMap properties(const Bundle& bundle, const std::string& device,
                      const OpenOptions& options) {
  ov::AnyMap found{{"INFERENCE_PRECISION_HINT", *word_of(kHints, bundle.manifest.precision)}};
  if (device != "cpu") {
    if (options.threads)
      throw InputError("threads is about a CPU; this engine runs on " + device + ".");
    return found;
  }
  const OpenVinoInfo info = openvino_info(bundle);
  found["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = info.group;
  found["KV_CACHE_PRECISION"] = std::string(name_of(info.kv_precision));
  // All threads work on one request. OpenVINO itself would tie each to a core, and of two engines
  // to the same ones.
  found["NUM_STREAMS"] = 1;
  found["INFERENCE_NUM_THREADS"] = options.threads > 0 ? options.threads : default_threads();
  found["ENABLE_CPU_PINNING"] = !tied_cpus(options.threads).empty();
  return found;
}

// An element type as the manifest has it; one that it never has stays as OpenVINO says it.
std::string dtype_of(const ov::element::Type& type) {
  static const Words kNames = {{"i64", "int64"},
                               {"i32", "int32"},
                               {"f32", "float32"},
                               {"f16", "float16"},
                               {"bf16", "bfloat16"}};
  const std::string name = type.get_type_name();
  const std::string* known = word_of(kNames, name);
  return known ? *known : name;
}

// One of a model's own inputs or outputs; OpenVINO does not name their axes. A tensor may have
// several names, of which one of ours is.
TensorSpec spec_of(const ov::Output<const ov::Node>& port, const std::vector<TensorSpec>& wanted) {
  TensorSpec spec;
  const auto& names = port.get_names();
  std::vector<std::string> sorted(names.begin(), names.end());
  std::sort(sorted.begin(), sorted.end());
  const auto ours = std::find_if(sorted.begin(), sorted.end(), [&wanted](const std::string& name) {
    return std::any_of(wanted.begin(), wanted.end(),
                       [&name](const TensorSpec& one) { return one.name == name; });
  });
  if (!sorted.empty()) spec.name = ours == sorted.end() ? sorted.front() : *ours;
  spec.dtype = dtype_of(port.get_element_type());
  if (port.get_partial_shape().rank().is_dynamic()) return spec;
  for (const ov::Dimension& axis : port.get_partial_shape()) {
    if (axis.is_dynamic())
      spec.shape.emplace_back(std::string());
    else
      spec.shape.emplace_back(axis.get_length());
  }
  return spec;
}

// Throws BundleError unless the model, as its file is, has the manifest's inputs and outputs.
void check_ports(const ov::Model& model, const Bundle& bundle) {
  const Graph& graph = bundle.manifest.graph();
  const std::string file = bundle.file("model");
  std::vector<TensorSpec> inputs, outputs;
  for (const auto& port : model.inputs()) inputs.push_back(spec_of(port, graph.inputs));
  for (const auto& port : model.outputs()) outputs.push_back(spec_of(port, graph.outputs));
  check_signature(file, graph, "inputs", inputs, /*names_axes=*/false);
  check_signature(file, graph, "outputs", outputs, /*names_axes=*/false);
}

// A bundle's graph as OpenVINO's model, its KV buffer paged if it has one.
std::shared_ptr<ov::Model> read_for(const Bundle& bundle, const std::string& path,
                                    bool map_weights) {
  const Graph& graph = bundle.manifest.graph();
  if (graph.input(TensorRole::offsets))
    throw std::runtime_error("rows that come as one sequence are not carried over");
  if (graph.input(TensorRole::past))
    return read_paged(path, map_weights,
                      {graph.input(TensorRole::positions)->name, graph.outputs[0].name},
                      [&bundle](const ov::Model& model) { check_ports(model, bundle); });
  // By the one frontend: asked for any file, OpenVINO tries all that it has on it.
  const auto frontend = ov::frontend::FrontEndManager().load_by_framework("onnx");
  const std::shared_ptr<ov::Model> model = frontend->convert(frontend->load(path, map_weights));
  check_ports(*model, bundle);
  return model;
}

ov::Tensor tensor_of(const Bound& bound) {
  ov::Shape shape(bound.shape.begin(), bound.shape.end());
  switch (bound.type) {
    case ElementType::float16:
      return {ov::element::f16, shape, bound.data};
    case ElementType::bfloat16:
      return {ov::element::bf16, shape, bound.data};
    case ElementType::int64:
      return {ov::element::i64, shape, bound.data};
    case ElementType::int32:
      return {ov::element::i32, shape, bound.data};
    case ElementType::uint8:
      return {ov::element::u8, shape, bound.data};
    default:
      return {ov::element::f32, shape, bound.data};
  }
}

class OpenVinoRun final : public Run {
 public:
  OpenVinoRun(Requests& requests, const std::vector<Bound>& inputs, std::vector<Bound> outputs)
      : requests_(requests), outputs_(std::move(outputs)) {
    for (const Bound& bound : inputs) inputs_.emplace_back(bound.name, tensor_of(bound));
  }

  void operator()() override {
    try {
      ov::InferRequest request = requests_.take();
      for (const auto& [name, tensor] : inputs_) request.set_tensor(name, tensor);
      request.infer();
      for (const Bound& bound : outputs_) copy_out(request.get_tensor(bound.name), bound);
      requests_.give_back(std::move(request));
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw_run_error(error, "OpenVINO failed (" + openvino_reason(error) + ").");
    }
  }

 private:
  // The request keeps what it gave for its next run.
  static void copy_out(const ov::Tensor& from, const Bound& to) {
    if (from.get_shape() != ov::Shape(to.shape.begin(), to.shape.end()))
      throw EngineFault("OpenVINO failed (its output " + quoted(to.name) + " has the shape " +
                        from.get_shape().to_string() + ").");
    std::memcpy(to.data, from.data(), from.get_byte_size());
  }

  Requests& requests_;
  std::vector<std::pair<std::string, ov::Tensor>> inputs_;
  std::vector<Bound> outputs_;
};

class OpenVinoBackend final : public HostBackend {
 public:
  OpenVinoBackend(ov::CompiledModel compiled, std::optional<BlockCache> cache)
      : requests_(std::move(compiled)), cache_(cache) {}

  std::unique_ptr<Run> bind(const std::vector<Bound>& inputs,
                            const std::vector<Bound>& outputs) override {
    return std::make_unique<OpenVinoRun>(requests_, inputs, outputs);
  }

  // Done when it was read: a model over a paged cache has other inputs than its file.
  void check(const Bundle&) const override {}

  const BlockCache* cache() const override { return cache_ ? &*cache_ : nullptr; }

 private:
  Requests requests_;
  std::optional<BlockCache> cache_;
};

// How the engine's KV cache lies in memory; empty if it keeps none.
std::optional<BlockCache> cache_of(const Bundle& bundle) {
  const TensorSpec* past = bundle.manifest.graph().input(TensorRole::past);
  if (!past) return std::nullopt;
  auto size = [past](std::size_t axis) {
    return static_cast<std::size_t>(std::get<std::int64_t>(past->shape[axis]));
  };
  return BlockCache(openvino_info(bundle).kv_precision, size(1), size(3));
}

}  // namespace

std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const OpenOptions& options) {
  const std::string device = options.device.empty() ? bundle.manifest.device : options.device;
  const std::string& precision = bundle.manifest.precision;
  refuse_kv(bundle, device);
  require_device(device);
  if (!word_of(kHints, precision))
    throw BundleError(bundle.path + ": the target openvino has no precision " + quoted(precision) +
                      ".");
  require_precision(device, precision);
  check_onnx(bundle);
  const std::string model = bundle.file("model"), path = bundle.in_folder("model");
  try {
    const std::shared_ptr<ov::Model> graph = read_for(bundle, path, options.map_weights);
    ov::CompiledModel compiled = openvino_core().compile_model(
        graph, *word_of(kDevices, device), properties(bundle, device, options));
    // It found the weights by their name.
    bundle.check_unchanged();
    return std::make_unique<OpenVinoBackend>(std::move(compiled), cache_of(bundle));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {  // of OpenVINO, or of what it reads files with
    if (ran_out_of_memory(error))
      throw out_of_memory("the engine " + model + " does not fit", error, "", device);
    const std::string why = Bundle::renamed(openvino_reason(error), path, model);
    throw BundleError(model + ": OpenVINO cannot load it (" + why + ").",
                      "Compile the checkpoint again with the versions installed here.");
  }
}

}  // namespace ptdeploy::detail
