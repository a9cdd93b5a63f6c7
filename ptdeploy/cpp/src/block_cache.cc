#include "block_cache.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ptdeploy::detail {
namespace {

// The bytes of a float32 scale and a float32 zero point.
constexpr std::size_t kParameters = 8;
constexpr float kLevels = 255;

// From the least and the largest of some numbers, `step` apart.
struct Scale {
  float scale, zero;

  Scale(const float* values, std::size_t count, std::size_t step) {
    float low = *values, high = *values;
    for (std::size_t i = 0; i < count; ++i) {
      low = std::min(low, values[i * step]);
      high = std::max(high, values[i * step]);
    }
    scale = (high - low) / kLevels;
    // What does not vary is its own zero point.
    if (scale == 0) scale = 1;
    zero = -low / scale;
  }

  char code(float value) const {
    const float rounded = std::nearbyint(value / scale + zero);
    return static_cast<char>(static_cast<std::uint8_t>(std::clamp(rounded, 0.f, kLevels)));
  }
};

}  // namespace

ElementType BlockCache::type() const {
  switch (precision_) {
    case KVPrecision::f32: return ElementType::float32;
    case KVPrecision::f16: return ElementType::float16;
    case KVPrecision::bf16: return ElementType::bfloat16;
    case KVPrecision::u8: break;
  }
  return ElementType::uint8;
}

std::size_t BlockCache::slots(bool is_key) const {
  return precision_ == KVPrecision::u8 && is_key ? kBlock + kParameters : kBlock;
}

std::size_t BlockCache::line(bool is_key) const {
  return precision_ == KVPrecision::u8 && !is_key ? width_ + kParameters : width_;
}

std::vector<std::int64_t> BlockCache::shape(bool is_key, std::size_t blocks) const {
  return {static_cast<std::int64_t>(blocks), static_cast<std::int64_t>(heads_),
          static_cast<std::int64_t>(slots(is_key)), static_cast<std::int64_t>(line(is_key))};
}

std::size_t BlockCache::bytes(bool is_key) const {
  return heads_ * slots(is_key) * line(is_key) * bytes_of(type());
}

void BlockCache::write(char* block, bool is_key, const float* tokens, std::size_t pitch,
                       std::size_t count) const {
  const std::size_t head = bytes(is_key) / heads_;
  for (std::size_t i = 0; i < heads_; ++i, block += head, tokens += pitch) {
    if (precision_ == KVPrecision::u8) {
      write_codes(block, is_key, tokens, count);
      continue;
    }
    const std::vector<char> stored =
        rounded(std::vector<float>(tokens, tokens + count * width_), type());
    std::memcpy(block, stored.data(), stored.size());
  }
}

// One head's.
void BlockCache::write_codes(char* block, bool is_key, const float* tokens,
                             std::size_t count) const {
  if (!is_key) {
    for (std::size_t token = 0; token < count; ++token, tokens += width_) {
      const Scale of(tokens, width_, 1);
      std::memcpy(block, &of.scale, sizeof of.scale);
      std::memcpy(block + sizeof of.scale, &of.zero, sizeof of.zero);
      block += kParameters;
      for (std::size_t i = 0; i < width_; ++i) *block++ = of.code(tokens[i]);
    }
    return;
  }
  char* codes = block + kParameters * width_;
  for (std::size_t channel = 0; channel < width_; ++channel) {
    const Scale of(tokens + channel, count, width_);
    std::memcpy(block + channel * sizeof of.scale, &of.scale, sizeof of.scale);
    std::memcpy(block + (width_ + channel) * sizeof of.zero, &of.zero, sizeof of.zero);
    for (std::size_t token = 0; token < count; ++token)
      codes[token * width_ + channel] = of.code(tokens[token * width_ + channel]);
  }
}

}  // namespace ptdeploy::detail
