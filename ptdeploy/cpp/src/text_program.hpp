// The tokenizer in a bundle as a program for OpenVINO: text to token ids.
#pragma once

#include <memory>
#include <string>

#include "bundle.hpp"

namespace ptdeploy::detail {

// Any number of threads may use it at once.
class TextProgram {
 public:
  virtual ~TextProgram() = default;
  // With the special tokens that belong around a text. Throws InputError if it is no UTF-8 or longer
  // than any text that fits.
  virtual Ids encode(const std::string& text) const = 0;
};

// Throws InputError if the bundle has none, TargetUnavailable if this library or OpenVINO's
// tokenizers cannot run it, BundleError if it cannot be loaded.
std::unique_ptr<TextProgram> open_text_program(const Bundle& bundle);

}  // namespace ptdeploy::detail
