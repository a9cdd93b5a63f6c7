// Whether a TensorRT engine can run here, and how to make one that can.
#pragma once

#include "engine_info.hpp"

namespace ptdeploy::detail {

// What engines run on: a TensorRT library and a GPU.
struct EngineHost {
  Flavor flavor{};
  std::string version;       // of the library
  std::string gpu;           // its name
  int major = 0, minor = 0;  // its compute capability
};

// Why an engine cannot run on `host`, or empty if it may.
std::string why_not_here(const EngineInfo& info, const EngineHost& host);
// How to make an engine that can run on `host`, for one that cannot.
std::string how_to_fit(const EngineInfo& info, const EngineHost& host, const std::string& bundle,
                       bool has_model);
// `has_model`: whether the bundle has the ONNX model that the engine was built from.
std::string how_to_rebuild(const std::string& bundle, bool has_model);

}  // namespace ptdeploy::detail
