// ONNX Runtime: the engine file is the ONNX model, its weights beside it as external data.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>

#include "backend.hpp"
#include "schema.hpp"

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

std::size_t elements(const std::vector<std::int64_t>& shape) {
  std::size_t count = 1;
  for (std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  return count;
}

Ort::Value value_of(const Ort::MemoryInfo& memory, const Bound& bound) {
  const std::size_t count = elements(bound.shape);
  if (bound.type == ElementType::int64)
    return Ort::Value::CreateTensor<std::int64_t>(memory, static_cast<std::int64_t*>(bound.data),
                                                  count, bound.shape.data(), bound.shape.size());
  return Ort::Value::CreateTensor<float>(memory, static_cast<float*>(bound.data), count,
                                         bound.shape.data(), bound.shape.size());
}

class OrtRun final : public Run {
 public:
  OrtRun(Ort::Session& session, const std::vector<Bound>& inputs, const std::vector<Bound>& outputs)
      : session_(session), binding_(session) {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    for (const Bound& bound : inputs)
      binding_.BindInput(bound.name.c_str(), value_of(memory, bound));
    for (const Bound& bound : outputs)
      binding_.BindOutput(bound.name.c_str(), value_of(memory, bound));
  }

  void operator()() override {
    try {
      session_.Run(Ort::RunOptions(), binding_);
    } catch (const Ort::Exception& error) {
      throw EngineFault(std::string("ONNX Runtime failed (") + reason(error.what()) + ").");
    }
  }

 private:
  Ort::Session& session_;
  Ort::IoBinding binding_;
};

class OrtBackend final : public Backend {
 public:
  OrtBackend(const std::string& model, const OpenOptions& options)
      : environment_(ORT_LOGGING_LEVEL_ERROR, "ptdeploy"),
        session_(environment_, std::filesystem::path(model).c_str(), settings(options)) {}

  std::unique_ptr<Run> bind(const std::vector<Bound>& inputs,
                            const std::vector<Bound>& outputs) override {
    try {
      return std::make_unique<OrtRun>(session_, inputs, outputs);
    } catch (const Ort::Exception& error) {
      throw EngineFault(std::string("ONNX Runtime failed (") + reason(error.what()) + ").");
    }
  }

  // calloc's zeros cost no memory until they are touched, which a large buffer's last slots seldom
  // are.
  Placed place(std::size_t bytes) override {
    char* data = static_cast<char*>(std::calloc(std::max<std::size_t>(bytes, 1), 1));
    if (!data) throw std::bad_alloc();
    return Placed(data, [](char* memory) { std::free(memory); });
  }

  void copy(const std::vector<LineCopy>& copies) override {
    for (const LineCopy& one : copies)
      for (std::size_t i = 0; i < one.lines; ++i)
        std::memcpy(one.to + i * one.to_pitch, one.from + i * one.from_pitch, one.bytes);
  }

  bool caches(ElementType type) const override { return type == ElementType::float32; }

 private:
  static Ort::SessionOptions settings(const OpenOptions& options) {
    Ort::SessionOptions settings;
    settings.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    // ONNX Runtime copies weights into the layout its products are fastest with, unless told.
    if (options.map_weights) settings.AddConfigEntry("session.disable_prepacking", "1");
    if (options.threads > 0) settings.SetIntraOpNumThreads(options.threads);
    return settings;
  }

  Ort::Env environment_;
  Ort::Session session_;
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
  const std::string model = bundle.file("model"), path = bundle.in_folder("model");
  if (model.empty()) throw BundleError(bundle.path + ": lists no file with the role 'model'.");
  try {
    auto backend = std::make_unique<OrtBackend>(path, options);
    // It found the weights by their name.
    bundle.check_unchanged();
    return backend;
  } catch (const Ort::Exception& error) {
    const std::string why = Bundle::renamed(reason(error.what()), path, model);
    throw BundleError(model + ": ONNX Runtime cannot load it (" + why + ").",
                      "Compile the checkpoint again with the versions installed here.");
  }
}

}  // namespace ptdeploy::detail
