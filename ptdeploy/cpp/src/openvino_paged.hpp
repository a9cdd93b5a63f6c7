// A model over a dense KV buffer as one over OpenVINO's paged cache: ptdeploy/backends/openvino/paged.py
// in C++.
#pragma once

#include <openvino/openvino.hpp>

#include <functional>
#include <memory>
#include <string>

namespace ptdeploy::detail {

// The graph's own names of what a step takes and gives.
struct StepNames {
  std::string positions, logits;
};

// An ONNX file as OpenVINO's model over a paged cache. `check` sees the model as the file is. Throws
// std::runtime_error if its attention cannot be paged, and what `check` and OpenVINO do.
std::shared_ptr<ov::Model> read_paged(const std::string& path, bool map_weights,
                                      const StepNames& names,
                                      const std::function<void(const ov::Model&)>& check);

}  // namespace ptdeploy::detail
