// ONNX Runtime: the engine file is the ONNX model, its weights beside it as external data.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <optional>

#include "cores.hpp"
#include "host_backend.hpp"
#include "layout.hpp"
#include "onnx_bundle.hpp"
#include "out_of_memory.hpp"
#include "schema.hpp"
#include "ties.hpp"

namespace ptdeploy::detail {
namespace {

// The first line, the operator and its module before what the operator says; without a full stop.
std::string reason(const char* text) {
  std::string line(text, std::strcspn(text, "\n"));
  const auto between = [&line](std::size_t& from, const std::string& begin, const std::string& end) {
    const std::size_t first = line.find(begin, from);
    const std::size_t last = first == line.npos ? first : line.find(end, first + begin.size());
    if (last == line.npos) return std::string();
    from = last;
    return line.substr(first + begin.size(), last - first - begin.size());
  };
  std::size_t at = 0;
  const std::string op = between(at, "running ", " node. Name:'");
  if (!op.empty()) {
    const std::string status = "' Status Message: ";
    std::string module = between(at, " node. Name:'", status);
    if (const std::size_t slash = module.rfind('/'); slash != module.npos)
      if (module.substr(slash + 1) == op) module.resize(slash);
    line = op + (module.empty() ? "" : " at " + module) + ": " + line.substr(at + status.size());
  }
  while (!line.empty() && (line.back() == ' ' || line.back() == '.')) line.pop_back();
  return line;
}

ONNXTensorElementDataType type_of(ElementType type) {
  switch (type) {
    case ElementType::float16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case ElementType::bfloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case ElementType::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

Ort::Value value_of(const Ort::MemoryInfo& memory, const Bound& bound) {
  std::size_t bytes = bytes_of(bound.type);
  for (std::int64_t size : bound.shape) bytes *= static_cast<std::size_t>(size);
  return Ort::Value::CreateTensor(memory, bound.data, bytes, bound.shape.data(),
                                  bound.shape.size(), type_of(bound.type));
}

// As ONNX Runtime's Python binding names them, but for "float".
const char* type_name(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return "float32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return "float16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return "bfloat16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return "double";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return "int8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
      return "int16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return "int32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return "int64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return "uint8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      return "uint16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32:
      return "uint32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64:
      return "uint64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return "bool";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING:
      return "string";
    default:
      return "another type";
  }
}

// One of a session's own inputs or outputs; an axis without a name is "".
TensorSpec spec_of(const char* name, const Ort::TypeInfo& info) {
  TensorSpec spec;
  spec.name = name;
  if (info.GetONNXType() != ONNX_TYPE_TENSOR) {
    spec.dtype = "no tensor";
    return spec;
  }
  const auto tensor = info.GetTensorTypeAndShapeInfo();
  spec.dtype = type_name(tensor.GetElementType());
  const std::vector<std::int64_t> shape = tensor.GetShape();
  const std::vector<const char*> names = tensor.GetSymbolicDimensions();
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] >= 0)
      spec.shape.emplace_back(shape[i]);
    else
      spec.shape.emplace_back(std::string(names[i]));
  }
  return spec;
}

class OrtRun final : public Run {
 public:
  OrtRun(Ort::Session& session, Seat* seat, const std::vector<Bound>& inputs,
         const std::vector<Bound>& outputs)
      : session_(session), seat_(seat), binding_(session) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    for (const Bound& bound : inputs)
      binding_.BindInput(bound.name.c_str(), value_of(memory, bound));
    for (const Bound& bound : outputs)
      binding_.BindOutput(bound.name.c_str(), value_of(memory, bound));
  }

  void operator()() override {
    const Seat::Taken tied(seat_);
    try {
      session_.Run(Ort::RunOptions(), binding_);
    } catch (const Ort::Exception& error) {
      throw_run_error(error, "ONNX Runtime failed (" + reason(error.what()) + ").");
    }
  }

 private:
  Ort::Session& session_;
  Seat* const seat_;
  Ort::IoBinding binding_;
};

class OrtBackend final : public HostBackend {
 public:
  OrtBackend(const std::string& model, const OpenOptions& options)
      : environment_(ORT_LOGGING_LEVEL_ERROR, "ptdeploy"),
        cpus_(tied_cpus(options.threads)),
        session_(environment_, std::filesystem::path(model).c_str(), settings(options, cpus_)),
        seat_(cpus_.empty() ? nullptr : std::make_unique<Seat>(cpus_.front())) {}

  std::unique_ptr<Run> bind(const std::vector<Bound>& inputs,
                            const std::vector<Bound>& outputs) override {
    try {
      return std::make_unique<OrtRun>(session_, seat_.get(), inputs, outputs);
    } catch (const Ort::Exception& error) {
      throw_run_error(error, "ONNX Runtime failed (" + reason(error.what()) + ").");
    }
  }

  void check(const Bundle& bundle) const override {
    const std::string model = bundle.file("model");
    std::vector<TensorSpec> inputs, outputs;
    Ort::AllocatorWithDefaultOptions allocator;
    for (std::size_t i = 0; i < session_.GetInputCount(); ++i)
      inputs.push_back(spec_of(session_.GetInputNameAllocated(i, allocator).get(),
                               session_.GetInputTypeInfo(i)));
    for (std::size_t i = 0; i < session_.GetOutputCount(); ++i)
      outputs.push_back(spec_of(session_.GetOutputNameAllocated(i, allocator).get(),
                                session_.GetOutputTypeInfo(i)));
    check_signature(model, bundle.manifest.graph(), "inputs", inputs);
    check_signature(model, bundle.manifest.graph(), "outputs", outputs);
  }

 private:
  static Ort::SessionOptions settings(const OpenOptions& options, const std::vector<int>& cpus) {
    Ort::SessionOptions settings;
    settings.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    // ONNX Runtime copies weights into the layout its products are fastest with, unless told.
    if (options.map_weights) settings.AddConfigEntry("session.disable_prepacking", "1");
    // ONNX Runtime's own default counts the machine's cores, and ties a thread to each of them.
    settings.SetIntraOpNumThreads(options.threads > 0 ? options.threads : default_threads());
    // It counts CPUs from one, and leaves out the caller, which is the first thread.
    std::string others;
    for (std::size_t i = 1; i < cpus.size(); ++i)
      others += (i > 1 ? ";" : "") + std::to_string(cpus[i] + 1);
    if (!others.empty())
      settings.AddConfigEntry("session.intra_op_thread_affinities", others.c_str());
    const std::optional<int> microseconds = spin_us();
    if (microseconds) {
      settings.AddConfigEntry("session.intra_op.spin_duration_us",
                              std::to_string(*microseconds).c_str());
      // No request runs: no thread waits for one.
      settings.AddConfigEntry("session.force_spinning_stop", "1");
    }
    settings.AddConfigEntry("session.intra_op.allow_spinning", microseconds == 0 ? "0" : "1");
    return settings;
  }

  Ort::Env environment_;
  const std::vector<int> cpus_;
  Ort::Session session_;
  const std::unique_ptr<Seat> seat_;
};

}  // namespace

std::unique_ptr<Backend> open_ort(const Bundle& bundle, const OpenOptions& options) {
  const std::string device = options.device.empty() ? bundle.manifest.device : options.device;
  if (device != "cpu")
    throw TargetUnavailable("The C++ library runs bundles on cpu, not on " + quoted(device) + ".",
                            "Open it with the device \"cpu\".");
  // A library older than the headers this was compiled with gives no API at all.
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
    throw TargetUnavailable(
        std::string("The ONNX Runtime library ") + OrtGetApiBase()->GetVersionString() +
            " is older than the headers ptdeploy was compiled with (API version " +
            std::to_string(ORT_API_VERSION) + ").",
        "Install one of at least their version.");
  check_onnx(bundle);
  const std::string model = bundle.file("model"), path = bundle.in_folder("model");
  try {
    auto backend = std::make_unique<OrtBackend>(path, options);
    // It found the weights by their name.
    bundle.check_unchanged();
    return backend;
  } catch (const std::bad_alloc& error) {
    throw out_of_memory("the engine " + model + " does not fit", error);
  } catch (const Ort::Exception& error) {
    // Before memory: a thread's stack is what a system may say it lacks.
    if (std::string(error.what()).find("pthread_create failed") != std::string::npos)
      throw TargetUnavailable(
          "This process may start no more threads.",
          "Give the engine fewer: threads=1, or PTDEPLOY_THREADS=1 in its environment.");
    if (ran_out_of_memory(error))
      throw out_of_memory("the engine " + model + " does not fit", error);
    const std::string why = Bundle::renamed(reason(error.what()), path, model);
    throw BundleError(model + ": ONNX Runtime cannot load it (" + why + ").",
                      "Compile the checkpoint again with the versions installed here.");
  }
}

}  // namespace ptdeploy::detail
