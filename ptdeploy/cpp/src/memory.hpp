// How much memory this process may still take, before it takes it: a large buffer of zeros costs
// nothing until it is touched, and then the kernel ends the process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace ptdeploy::detail {

// Bytes that are left: the machine's, the control group's and the process's limit, the least. Empty
// where the system does not say.
std::optional<std::uint64_t> available_memory();

// Throws InputError, naming `what`, if it is more than this process may still take.
void require_memory(std::uint64_t needed, const std::string& what);

// Bytes as people say them.
std::string in_words(std::uint64_t size);

}  // namespace ptdeploy::detail
