// What an ONNX file names beside itself, read without ONNX Runtime and without its weights.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>

namespace ptdeploy::detail {

class OnnxError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct OnnxFile {
  // The files that its tensors name, as they are written.
  std::set<std::string> external;
  // How many rows the table has that the token ids look up, as they are or kept within bounds;
  // empty where that is not one Gather over a constant.
  std::optional<std::int64_t> words;
};

// `ids` names the input of token ids. Throws OnnxError if the file is no ONNX or cannot be read.
OnnxFile read_onnx_file(const std::string& path, const std::string& ids);

}  // namespace ptdeploy::detail
