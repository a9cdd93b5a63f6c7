#include "same_engine.hpp"

#include <algorithm>

#include "sha256.hpp"
#include "whose.hpp"

namespace ptdeploy::detail {
namespace {

// A string as Python's msgspec writes it in JSON: hashes are of its bytes.
std::string json_text(const std::string& text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (char letter : text) {
    const auto byte = static_cast<unsigned char>(letter);
    static constexpr char kPlain[] = "\b\t\n\f\r", kShort[] = "btnfr";
    const char* named = byte ? std::find(kPlain, kPlain + 5, letter) : kPlain + 5;
    if (letter == '"' || letter == '\\')
      out += std::string("\\") + letter;
    else if (named != kPlain + 5)
      out += std::string("\\") + kShort[named - kPlain];
    else if (byte < 0x20)
      out += std::string("\\u00") + kHex[byte >> 4] + kHex[byte & 15];
    else
      out += letter;
  }
  return out + "\"";
}

template <class Items, class Write>
std::string json_list(const Items& items, Write write) {
  std::string out = "[";
  for (const auto& item : items) out += (out.size() > 1 ? "," : "") + write(item);
  return out + "]";
}

std::string json_axis(const Axis& axis) {
  if (const auto* size = std::get_if<std::int64_t>(&axis)) return std::to_string(*size);
  return json_text(std::get<std::string>(axis));
}

std::string json_tensor(const TensorSpec& spec) {
  return "{\"name\":" + json_text(spec.name) + ",\"role\":" + json_text(name_of(spec.role)) +
         ",\"dtype\":" + json_text(spec.dtype) + ",\"shape\":" + json_list(spec.shape, json_axis) +
         ",\"meaning\":" + json_text(spec.meaning) + "}";
}

}  // namespace

std::string engine_sha256(const Manifest& manifest) {
  StringMap files;
  for (const FileEntry& one : manifest.files)
    if (of_graph(one.role)) files.emplace_back(one.role, one.sha256);
  std::sort(files.begin(), files.end());
  auto file = [](const auto& one) {
    return "[" + json_text(one.first) + "," + json_text(one.second) + "]";
  };
  const Graph& graph = manifest.graph();
  const std::string told = "{\"files\":" + json_list(files, file) +
                           ",\"inputs\":" + json_list(graph.inputs, json_tensor) +
                           ",\"outputs\":" + json_list(graph.outputs, json_tensor) + "}";
  Sha256 hash;
  hash.update(told.data(), told.size());
  return hash.hex();
}

}  // namespace ptdeploy::detail
