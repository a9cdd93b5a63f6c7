// The seam between text and token ids. ptdeploy takes and gives ids; plug in a tokenizer here.
//
// The examples call open_text() and know no more. This folder's text_ids.cc has the bundle's own
// program, and where there is none its "text" is ids, as in "5,6,7". For another tokenizer write
// another file that defines open_text(), with any library that takes the bundle's tokenizer.json as
// engine.read("tokenizer") gives it, and build with -DPTDEPLOY_EXAMPLE_TEXT=that/file.cc. docs/cpp.md
// has such a file.
#pragma once

#include <functional>
#include <string>

#include "ptdeploy/ptdeploy.hpp"

// Both must be safe to call from several threads at once.
struct Text {
  std::function<ptdeploy::Ids(const std::string&)> encode;
  std::function<std::string(const ptdeploy::Ids&)> decode;
};

Text open_text(const ptdeploy::Engine& engine);

// Text that grows token by token, given out as soon as whole characters are there.
class TextStream {
 public:
  explicit TextStream(const Text& text) : text_(text) {}

  std::string add(std::int64_t token) {
    ids_.push_back(token);
    const std::string now = text_.decode(ids_);
    static const std::string kHalfCharacter = "\xEF\xBF\xBD";
    const bool half = now.size() >= 3 && now.compare(now.size() - 3, 3, kHalfCharacter) == 0;
    if (half || now.size() <= given_) return "";
    std::string piece = now.substr(given_);
    given_ = now.size();
    return piece;
  }

 private:
  const Text& text_;
  ptdeploy::Ids ids_;
  std::size_t given_ = 0;
};
