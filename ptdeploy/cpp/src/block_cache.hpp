// The blocks of OpenVINO's KV cache on a CPU, in each type that it keeps keys and values in:
// ptdeploy/backends/openvino/kv_cache.py in C++.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "element_type.hpp"

namespace ptdeploy::detail {

enum class KVPrecision { f32, f16, bf16, u8 };

// Blocks (heads, slots, width). In u8 a value is (code - zero point) * scale. Keys have a scale and a
// zero point for each channel of a block, both before its codes; values for each token, before that
// one's codes. Source: OpenVINO's CPU plugin, attn_quant.cpp.
class BlockCache {
 public:
  // Slots of a block, which OpenVINO's CPU plugin has no other number of.
  static constexpr std::size_t kBlock = 32;

  BlockCache(KVPrecision precision, std::size_t heads, std::size_t width)
      : precision_(precision), heads_(heads), width_(width) {}

  // The scales of its keys are for all tokens of a block together.
  bool changes_when_appended_to() const { return precision_ == KVPrecision::u8; }
  ElementType type() const;
  // Of the keys or the values of so many blocks.
  std::vector<std::int64_t> shape(bool is_key, std::size_t blocks) const;
  // Of the keys or the values of one block.
  std::size_t bytes(bool is_key) const;
  // Puts a block's tokens, at most kBlock of them, into its first slots. Head h's token t is the
  // `width` numbers at tokens + h * pitch + t * width.
  void write(char* block, bool is_key, const float* tokens, std::size_t pitch,
             std::size_t count) const;

 private:
  void write_codes(char* block, bool is_key, const float* tokens, std::size_t count) const;
  std::size_t slots(bool is_key) const;
  std::size_t line(bool is_key) const;  // elements of a slot

  KVPrecision precision_;
  std::size_t heads_, width_;
};

}  // namespace ptdeploy::detail
