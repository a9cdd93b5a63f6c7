#include "openvino_info.hpp"

#include "fields.hpp"
#include "layout.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::int64_t kMaxInfoBytes = 64 * 1024;
constexpr std::int64_t kMostGroup = 1 << 16;
constexpr const char* kKVPrecisions[] = {"f32", "f16", "bf16", "u8"};

void read_group(std::int64_t& group, const Json& json, const Where& where) {
  group = read_int(json, where);
  if (group < 0) where.fail("Expected `int` >= 0");
  if (group > kMostGroup) where.fail("Expected `int` <= " + std::to_string(kMostGroup));
}

OpenVinoInfo read_openvino_info(const Json& json) {
  OpenVinoInfo out;
  auto precision = [&out](const Json& value, const Where& at) {
    out.kv_precision = static_cast<KVPrecision>(read_word(value, at, kKVPrecisions));
  };
  auto group = [&out](const Json& value, const Where& at) { read_group(out.group, value, at); };
  read_object(json, Where(), {{"kv_precision", false, precision}, {"group", false, group}});
  return out;
}

}  // namespace

const char* name_of(KVPrecision precision) { return kKVPrecisions[static_cast<int>(precision)]; }

OpenVinoInfo openvino_info(const Bundle& bundle) {
  const std::string file = bundle.file("engine_info");
  if (file.empty()) return {};
  for (const FileEntry& one : bundle.manifest.files)
    if (one.role == "engine_info" && one.size > kMaxInfoBytes)
      throw BundleError(file + ": does not describe an engine.", kAgain);
  std::string reason;
  try {
    return read_openvino_info(parse_json(*bundle.content("engine_info")));
  } catch (const JsonError& error) {
    reason = error.what();
  } catch (const SchemaError& error) {
    reason = error.what();
  }
  throw BundleError(file + ": does not describe an engine (" + reason + ").", kAgain);
}

}  // namespace ptdeploy::detail
