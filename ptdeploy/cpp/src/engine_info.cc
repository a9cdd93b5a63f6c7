#include "engine_info.hpp"

#include <algorithm>
#include <fstream>

#include "fields.hpp"
#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::size_t kMaxBytes = 4 * 1024 * 1024;

std::string read_text(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  std::string text(kMaxBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!stream.eof() && !stream) throw BundleError(file + ": cannot be read.");
  text.resize(static_cast<std::size_t>(stream.gcount()));
  if (text.size() > kMaxBytes)
    throw BundleError(file + ": larger than " + std::to_string(kMaxBytes) +
                      " bytes, not an engine's description.");
  return text;
}

// Least, usual and largest shape.
EngineProfile::Range read_range(const std::string& input, const Json& json, const Where& where) {
  EngineProfile::Range out{input, {}, {}};
  Sizes usual, *places[] = {&out.least, &usual, &out.most};
  const Json::Array& items = read_items(json, where);
  for (std::size_t i = 0; i < std::min<std::size_t>(items.size(), 3); ++i)
    *places[i] = read_array(items[i], where.item(i), number);
  if (items.size() != 3) where.fail("Expected `array` of length 3");
  return out;
}

EngineProfile read_profile(const Json& json, const Where& where) {
  EngineProfile out;
  auto name = [&out](const Json& value, const Where& at) {
    static constexpr const char* kNames[] = {"requests", "decode", "prefill"};
    out.name = kNames[read_word(value, at, kNames)];
  };
  auto shapes = [&out](const Json& value, const Where& at) {
    out.ranges.clear();
    read_map(value, at, [&out](const std::string& input, const Json& range, const Where& place) {
      // The last of a name wins, as in every object.
      out.ranges.erase(std::remove_if(out.ranges.begin(), out.ranges.end(),
                                      [&input](const auto& one) { return one.input == input; }),
                       out.ranges.end());
      out.ranges.push_back(read_range(input, range, place));
    });
  };
  read_object(json, where, {{"name", true, name}, {"shapes", true, shapes}});
  return out;
}

void skip_counts(const Json& json, const Where& where) {
  read_map(json, where, [](const std::string&, const Json& counts, const Where& at) {
    read_map(counts, at, [](const std::string&, const Json& count, const Where& place) {
      number(count, place);
    });
  });
}

EngineInfo read_info(const Json& json) {
  EngineInfo out;
  auto flavor = [&out](const Json& value, const Where& at) {
    out.flavor = static_cast<Flavor>(read_word(value, at, {"tensorrt", "rtx"}));
  };
  auto compatibility = [&out](const Json& value, const Where& at) {
    out.hardware_compatibility = static_cast<HardwareCompatibility>(
        read_word(value, at, {"none", "ampere_plus", "same_compute_capability"}));
  };
  read_object(json, Where(),
              {{"flavor", true, flavor},
               {"version", true, into(out.version)},
               {"gpu", true, into(out.gpu)},
               {"compute_capabilities", true, array_into(out.compute_capabilities, read_string)},
               {"left_out", false, array_into(out.left_out, read_string)},
               {"profiles", true, array_into(out.profiles, read_profile)},
               {"tf32", true, skip_bool},
               {"strip_weights", true, into(out.strip_weights)},
               {"version_compatible", true, into(out.version_compatible)},
               {"hardware_compatibility", true, compatibility},
               {"workspace", true, number_or_null},
               {"optimization_level", true, number_or_null},
               {"precisions", true, skip_counts},
               {"onnx_sha256", true, skip_string}});
  return out;
}

// As Python prints them.
std::string text_of(const NamedShapes& shapes) {
  std::string out;
  for (std::size_t i = 0; i < std::min<std::size_t>(shapes.size(), 3); ++i) {
    std::string sizes;
    for (std::int64_t size : shapes[i].second)
      sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
    out += (i ? ", " : "") + quoted(shapes[i].first) + ": [" + sizes + "]";
  }
  return "{" + out + "}";
}

}  // namespace

const char* name_of(Flavor flavor) { return flavor == Flavor::rtx ? "TensorRT-RTX" : "TensorRT"; }

bool EngineProfile::takes(const NamedShapes& shapes) const {
  return std::all_of(ranges.begin(), ranges.end(), [&shapes](const Range& range) {
    auto found = std::find_if(shapes.begin(), shapes.end(),
                              [&range](const auto& one) { return one.first == range.input; });
    if (found == shapes.end()) return false;
    const Sizes& shape = found->second;
    if (shape.size() != range.least.size() || shape.size() != range.most.size()) return false;
    for (std::size_t i = 0; i < shape.size(); ++i)
      if (shape[i] < range.least[i] || shape[i] > range.most[i]) return false;
    return true;
  });
}

EngineInfo read_engine_info(const std::string& file) {
  if (file.empty()) throw BundleError("The bundle lists no file with the role 'engine_info'.");
  std::string reason;
  try {
    return read_info(parse_json(read_text(file)));
  } catch (const JsonError& error) {
    reason = error.what();
  } catch (const SchemaError& error) {
    reason = error.what();
  }
  throw BundleError(file + ": does not describe an engine (" + reason + ").",
                    "Compile the checkpoint again.");
}

std::size_t choose_profile(const std::vector<EngineProfile>& profiles, const NamedShapes& shapes) {
  for (std::size_t i = 0; i < profiles.size(); ++i)
    if (profiles[i].takes(shapes)) return i;
  throw InputError(
      "The engine was not built for this request: its shapes are " + text_of(shapes) + ".",
      "Send fewer rows or tokens at once, or compile with a larger --profile.");
}

}  // namespace ptdeploy::detail
