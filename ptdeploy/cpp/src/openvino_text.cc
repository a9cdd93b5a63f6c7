#include "openvino_text.hpp"

#include <openvino/openvino.hpp>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include "layout.hpp"
#include "openvino_core.hpp"
#include "openvino_errors.hpp"
#include "openvino_requests.hpp"
#include "out_of_memory.hpp"
#include "utf8.hpp"

namespace ptdeploy::detail {
namespace {

// Text of more bytes for each token that fits, and of more than this in all, is refused before it is
// tokenized.
constexpr std::size_t kBytesOfAToken = 256, kLeastBytes = std::size_t{1} << 20;

#ifndef PTDEPLOY_OPENVINO_TOKENIZERS
#define PTDEPLOY_OPENVINO_TOKENIZERS ""
#endif

// Where OpenVINO's tokenizers are: what the environment says, else what the library was built with.
std::string tokenizers_library() {
  const char* given = std::getenv("PTDEPLOY_OPENVINO_TOKENIZERS");
  return given && *given ? given : PTDEPLOY_OPENVINO_TOKENIZERS;
}

ov::Core& core_with_tokenizers() {
  const std::string library = tokenizers_library();
  const char* fix =
      "Build with -DPTDEPLOY_OPENVINO_TOKENIZERS=/path/to/libopenvino_tokenizers.so, or set the "
      "environment variable of that name.";
  if (library.empty())
    throw TargetUnavailable("It is not known where OpenVINO's tokenizers are.", fix);
  static std::mutex adding;
  static std::set<std::string> added;
  std::lock_guard<std::mutex> lock(adding);
  ov::Core& core = openvino_core();
  if (added.count(library)) return core;
  try {
    core.add_extension(library);
    added.insert(library);
  } catch (const std::exception& error) {
    throw TargetUnavailable(
        library + ": OpenVINO cannot load its tokenizers (" + openvino_reason(error) + ").", fix);
  }
  return core;
}

ov::CompiledModel compiled(const Bundle& bundle) {
  ov::Core& core = core_with_tokenizers();
  const std::string program = *bundle.content("tokenizer_program");
  const std::string bytes = *bundle.content("tokenizer_weights");
  ov::Tensor weights(ov::element::u8, {bytes.size()});
  std::memcpy(weights.data(), bytes.data(), bytes.size());
  try {
    const auto model = core.read_model(program, weights);
    if (model->inputs().size() != 1 || model->input(0).get_element_type() != ov::element::string ||
        model->outputs().empty() || model->output(0).get_element_type() != ov::element::i64)
      throw std::runtime_error("it does not make token ids of a text");
    return core.compile_model(model, "CPU", {{"INFERENCE_NUM_THREADS", 1}});
  } catch (const std::exception& error) {
    if (ran_out_of_memory(error))
      throw out_of_memory(bundle.file("tokenizer_program") + " does not fit", error);
    throw BundleError(bundle.file("tokenizer_program") + ": OpenVINO cannot load it (" +
                          openvino_reason(error) + ").",
                      kAgain);
  }
}

class OpenVinoText final : public TextProgram {
 public:
  explicit OpenVinoText(const Bundle& bundle)
      : most_(std::max(kLeastBytes, static_cast<std::size_t>(bundle.manifest.limits.max_context) *
                                        kBytesOfAToken)),
        encoding_(compiled(bundle)) {}

  Ids encode(const std::string& text) const override {
    if (text.size() > most_)
      throw InputError("The text has " + std::to_string(text.size()) + " bytes, but at most " +
                           std::to_string(most_) + " are read: far more than the tokens that fit.",
                       "Cut it before you send it.");
    if (!is_utf8(text)) throw InputError("The text is not UTF-8.", "Convert it first.");
    ov::Tensor given(ov::element::string, {1});
    given.data<std::string>()[0] = text;
    try {
      ov::InferRequest request = encoding_.take();
      request.set_input_tensor(given);
      request.infer();
      const ov::Tensor found = request.get_output_tensor(0);
      const auto* ids = found.data<std::int64_t>();
      Ids out(ids, ids + found.get_size());
      encoding_.give_back(std::move(request));
      return out;
    } catch (const std::exception& error) {
      throw_run_error(error, "OpenVINO's tokenizers failed (" + openvino_reason(error) + ").");
    }
  }

 private:
  std::size_t most_;
  mutable Requests encoding_;
};

}  // namespace

std::unique_ptr<TextProgram> open_openvino_text(const Bundle& bundle) {
  return std::make_unique<OpenVinoText>(bundle);
}

}  // namespace ptdeploy::detail
