// How much memory this process may still take, before it takes it: a large buffer of zeros costs
// nothing until it is touched, and then the kernel ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

namespace ptdeploy::detail {

// Bytes that are left: the machine's, the control group's and the process's limit, the least. Empty
// where the system does not say.
std::optional<std::uint64_t> available_memory();

// Throws OutOfMemory, naming `what`, if it is more than this process may still take.
void require_memory(std::uint64_t needed, const std::string& what);

// Bytes of so many things of so many bytes. Throws std::bad_alloc if no object can be as large.
std::size_t product(std::initializer_list<std::size_t> sizes);

// Bytes as people say them.
std::string in_words(std::uint64_t size);

}  // namespace ptdeploy::detail
