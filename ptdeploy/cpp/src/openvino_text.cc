#include "openvino_text.hpp"

#include <openvino/openvino.hpp>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "layout.hpp"
#include "openvino_errors.hpp"
#include "openvino_requests.hpp"

namespace ptdeploy::detail {
namespace {

// Text of more bytes for each token that fits, and of more than this in all, is refused before it is
// tokenized.
constexpr std::size_t kBytesOfAToken = 256, kLeastBytes = std::size_t{1} << 20;

#ifndef PTDEPLOY_OPENVINO_TOKENIZERS
#define PTDEPLOY_OPENVINO_TOKENIZERS ""
#endif

// Whether bytes are Unicode in UTF-8: no half of a surrogate pair, nothing written longer than it is.
bool is_utf8(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i]);
    const std::size_t more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    if ((first >= 0x80 && first < 0xC2) || first > 0xF4 || text.size() - i <= more) return false;
    std::uint32_t letter = more == 0 ? first : first & (0x3Fu >> more);
    for (std::size_t k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xC0) != 0x80) return false;
      letter = letter << 6 | (next & 0x3Fu);
    }
    const std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (letter < least[more] || letter > 0x10FFFF || (letter >= 0xD800 && letter < 0xE000))
      return false;
    i += more + 1;
  }
  return true;
}

// Where OpenVINO's tokenizers are: what the environment says, else what the library was built with.
std::string tokenizers_library() {
  const char* given = std::getenv("PTDEPLOY_OPENVINO_TOKENIZERS");
  return given && *given ? given : PTDEPLOY_OPENVINO_TOKENIZERS;
}

ov::Core core_with_tokenizers() {
  const std::string library = tokenizers_library();
  const char* fix =
      "Build with -DPTDEPLOY_OPENVINO_TOKENIZERS=/path/to/libopenvino_tokenizers.so, or set the "
      "environment variable of that name.";
  if (library.empty())
    throw TargetUnavailable("It is not known where OpenVINO's tokenizers are.", fix);
  ov::Core core;
  try {
    core.add_extension(library);
  } catch (const std::exception& error) {
    throw TargetUnavailable(
        library + ": OpenVINO cannot load its tokenizers (" + openvino_reason(error) + ").", fix);
  }
  return core;
}

ov::CompiledModel compiled(ov::Core& core, const Bundle& bundle, const std::string& of) {
  const std::string program = *bundle.content(of + "_program");
  const std::string bytes = *bundle.content(of + "_weights");
  ov::Tensor weights(ov::element::u8, {bytes.size()});
  std::memcpy(weights.data(), bytes.data(), bytes.size());
  try {
    const auto model = core.read_model(program, weights);
    if (model->inputs().size() != 1 || model->outputs().empty())
      throw std::runtime_error("it does not take one input");
    return core.compile_model(model, "CPU", {{"INFERENCE_NUM_THREADS", 1}});
  } catch (const std::exception& error) {
    throw BundleError(bundle.file(of + "_program") + ": OpenVINO cannot load it (" +
                          openvino_reason(error) + ").",
                      kAgain);
  }
}

// What `take` makes of the program's output.
template <class Take>
auto run(Requests& requests, const ov::Tensor& given, Take take) {
  try {
    ov::InferRequest request = requests.take();
    request.set_input_tensor(given);
    request.infer();
    auto found = take(request.get_output_tensor(0));
    requests.give_back(std::move(request));
    return found;
  } catch (const std::exception& error) {
    throw EngineFault("OpenVINO's tokenizers failed (" + openvino_reason(error) + ").");
  }
}

class OpenVinoText final : public TextProgram {
 public:
  OpenVinoText(ov::Core core, const Bundle& bundle)
      : core_(std::move(core)),
        most_(std::max(kLeastBytes, static_cast<std::size_t>(bundle.manifest.limits.max_context) *
                                        kBytesOfAToken)),
        encoding_(compiled(core_, bundle, "tokenizer")),
        decoding_(compiled(core_, bundle, "detokenizer")) {}

  Ids encode(const std::string& text) const override {
    if (text.size() > most_)
      throw InputError("The text has " + std::to_string(text.size()) + " bytes, but at most " +
                           std::to_string(most_) + " are read: far more than the tokens that fit.",
                       "Cut it before you send it.");
    if (!is_utf8(text)) throw InputError("The text is not UTF-8.", "Convert it first.");
    ov::Tensor given(ov::element::string, {1});
    given.data<std::string>()[0] = text;
    return run(encoding_, given, [](const ov::Tensor& found) {
      const auto* ids = found.data<std::int64_t>();
      return Ids(ids, ids + found.get_size());
    });
  }

  std::string decode(const Ids& ids) const override {
    Ids known;
    for (std::int64_t id : ids)
      if (id >= 0 && id <= std::numeric_limits<std::int32_t>::max()) known.push_back(id);
    if (known.empty()) return "";
    const ov::Tensor given(ov::element::i64, {1, known.size()}, known.data());
    return run(decoding_, given, [](const ov::Tensor& found) {
      if (found.get_size() != 1) throw std::runtime_error("it gives no one text");
      return found.data<std::string>()[0];
    });
  }

 private:
  ov::Core core_;
  std::size_t most_;
  mutable Requests encoding_, decoding_;
};

}  // namespace

std::unique_ptr<TextProgram> open_openvino_text(const Bundle& bundle) {
  return std::make_unique<OpenVinoText>(core_with_tokenizers(), bundle);
}

}  // namespace ptdeploy::detail
