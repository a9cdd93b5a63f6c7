#include "element_type.hpp"

#include <cstdint>
#include <cstring>

namespace ptdeploy::detail {
namespace {

constexpr ElementType kTypes[] = {ElementType::float32, ElementType::float16, ElementType::bfloat16,
                                  ElementType::int64};

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The upper part of a number without its last `shift` bits, rounded to nearest even.
std::uint32_t shifted(std::uint32_t number, unsigned shift) {
  const std::uint32_t half = (1u << (shift - 1)) - 1 + ((number >> shift) & 1);
  return (number + half) >> shift;
}

std::uint16_t bfloat16(float value) {
  // The sum would carry a NaN over into an infinity.
  if (value != value) return 0x7FC0;
  return static_cast<std::uint16_t>(shifted(bits_of(value), 16));
}

std::uint16_t float16(float value) {
  const std::uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFF;
  std::uint32_t half;
  if (value != value) {
    half = 0x7E00;
  } else if (magnitude >= 0x47800000) {  // 2^16 and more
    half = 0x7C00;
  } else if (magnitude >= 0x38800000) {  // 2^-14: normal in float16, exponent less by 112
    half = shifted(magnitude - (112u << 23), 13);
  } else if (magnitude >= 0x33000000) {  // 2^-25: a multiple of 2^-24
    half = shifted((magnitude & 0x7FFFFF) | 0x800000, 126 - (magnitude >> 23));
  } else {
    half = 0;
  }
  return static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000));
}

}  // namespace

std::size_t bytes_of(ElementType type) {
  switch (type) {
    case ElementType::float16:
    case ElementType::bfloat16:
      return 2;
    case ElementType::int64:
      return 8;
    case ElementType::uint8:
      return 1;
    default:
      return 4;
  }
}

const char* name_of(ElementType type) {
  static constexpr const char* kNames[] = {"float32", "float16", "bfloat16",
                                           "int64",   "int32",   "uint8"};
  return kNames[static_cast<int>(type)];
}

std::optional<ElementType> element_type(const std::string& name) {
  for (ElementType type : kTypes)
    if (name == name_of(type)) return type;
  return std::nullopt;
}

std::vector<char> rounded(const std::vector<float>& values, ElementType type) {
  std::vector<char> out(values.size() * bytes_of(type));
  if (type == ElementType::float32) {
    if (!values.empty()) std::memcpy(out.data(), values.data(), out.size());
    return out;
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t half =
        type == ElementType::float16 ? float16(values[i]) : bfloat16(values[i]);
    std::memcpy(out.data() + 2 * i, &half, 2);
  }
  return out;
}

}  // namespace ptdeploy::detail
