// engine.json: what a TensorRT engine was built for and how, which the plan itself does not say.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ptdeploy::detail {

using Sizes = std::vector<std::int64_t>;
using NamedShapes = std::vector<std::pair<std::string, Sizes>>;

enum class Flavor { tensorrt, rtx };
// "TensorRT" or "TensorRT-RTX".
const char* name_of(Flavor flavor);

enum class HardwareCompatibility { none, ampere_plus, same_compute_capability };

// An optimization profile, "requests", "decode" or "prefill": for each input its least and largest
// shape.
struct EngineProfile {
  struct Range {
    std::string input;
    Sizes least, most;
  };
  std::vector<Range> ranges;
  std::string name;

  // Whether every input's shape is within its range.
  bool takes(const NamedShapes& shapes) const;
};

// Fields that are only checked are not kept.
struct EngineInfo {
  Flavor flavor{};
  std::string version, gpu;
  std::vector<std::string> compute_capabilities, left_out;
  std::vector<EngineProfile> profiles;
  bool strip_weights = false, version_compatible = false;
  HardwareCompatibility hardware_compatibility{};
};

// `file` is empty where the bundle lists none. Throws BundleError.
EngineInfo read_engine_info(const std::string& file);

// The first profile that takes these shapes. Throws InputError if none does.
std::size_t choose_profile(const std::vector<EngineProfile>& profiles, const NamedShapes& shapes);

}  // namespace ptdeploy::detail
