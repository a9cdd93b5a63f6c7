#include "text_program.hpp"

#include "openvino_text.hpp"

namespace ptdeploy::detail {

std::unique_ptr<TextProgram> open_text_program(const Bundle& bundle) {
  for (const char* role : {"tokenizer_program", "tokenizer_weights"})
    if (bundle.file(role).empty())
      throw InputError(bundle.path + ": holds no program of its tokenizer.",
                       "Compile it with --cpp-tokenizer, or give the library token ids.");
#ifdef PTDEPLOY_OPENVINO
  return open_openvino_text(bundle);
#else
  throw TargetUnavailable("This build of ptdeploy's C++ library runs no program of a tokenizer.",
                          "Build it with -DPTDEPLOY_OPENVINO=ON and "
                          "-DPTDEPLOY_OPENVINO_TOKENIZERS=/path/to/libopenvino_tokenizers.so.");
#endif
}

}  // namespace ptdeploy::detail
