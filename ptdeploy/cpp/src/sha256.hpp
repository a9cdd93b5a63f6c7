// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace ptdeploy::detail {

class Sha256 {
 public:
  void update(const void* data, std::size_t size);
  std::string hex();  // ends it: 64 lower-case digits

  // For tests: never use the processor's instructions.
  bool portable = false;

 private:
  void blocks(const unsigned char* data, std::size_t count);
  std::uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  unsigned char pending_[64];
  std::size_t filled_ = 0;
  std::uint64_t bytes_ = 0;
};

// Whether a text can be what hex() gives.
inline bool is_sha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

extern const std::uint32_t kSha256Constants[64];

// On x86: whether this processor has the SHA extensions, and 64-byte blocks through them.
bool sha256_x86_available();
void sha256_x86_blocks(std::uint32_t state[8], const unsigned char* data, std::size_t count);

}  // namespace ptdeploy::detail
