// Element types of tensors, and float32 rounded to them.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace ptdeploy::detail {

// The last two are no manifest's: a backend's own.
enum class ElementType { float32, float16, bfloat16, int64, int32, uint8 };

std::size_t bytes_of(ElementType type);
// By the names of manifests, in both directions; by name those that they have.
const char* name_of(ElementType type);
std::optional<ElementType> element_type(const std::string& name);

// float32 as a floating type stores it, rounded to nearest even.
std::vector<char> rounded(const std::vector<float>& values, ElementType type);

}  // namespace ptdeploy::detail
