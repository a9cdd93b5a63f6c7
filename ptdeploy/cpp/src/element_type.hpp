// Element types of tensors, and float32 rounded to them.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace ptdeploy::detail {

enum class ElementType { float32, float16, bfloat16, int64 };

std::size_t bytes_of(ElementType type);
// By the names of manifests, in both directions.
const char* name_of(ElementType type);
std::optional<ElementType> element_type(const std::string& name);

// float32 as a floating type stores it, rounded to nearest even.
std::vector<char> rounded(const std::vector<float>& values, ElementType type);

}  // namespace ptdeploy::detail
