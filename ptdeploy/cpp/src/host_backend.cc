#include "host_backend.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace ptdeploy::detail {

// calloc's zeros cost no memory until they are touched, which a large buffer's last slots seldom
// are.
Placed HostBackend::place(std::size_t bytes) {
  char* data = static_cast<char*>(std::calloc(std::max<std::size_t>(bytes, 1), 1));
  if (!data) throw std::bad_alloc();
  return Placed(data, [](char* memory) { std::free(memory); });
}

void HostBackend::copy(const std::vector<LineCopy>& copies) {
  for (const LineCopy& one : copies)
    for (std::size_t i = 0; i < one.lines; ++i)
      std::memcpy(one.to + i * one.to_pitch, one.from + i * one.from_pitch, one.bytes);
}

}  // namespace ptdeploy::detail
