// One float32 tensor out of a safetensors file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ptdeploy::detail {

struct FloatTensor {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// `file` is named in messages. Throws BundleError if it is no safetensors file or has no such
// tensor.
FloatTensor read_float_tensor(const std::string& file, const std::string& name);

}  // namespace ptdeploy::detail
