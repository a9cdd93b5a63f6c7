// Memory that ran out, told from other failures: each library says it in an error of its own.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {

// The words of ptdeploy/arguments.py.
constexpr const char* kNotEnough = "There is not enough memory for what was asked.";
constexpr const char* kAskForLess = "Ask for less at once, or give this process more.";

// What a public function does: memory that the standard library lacks is an Error there too.
template <class Work>
auto at_the_door(Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    throw OutOfMemory(kNotEnough, kAskForLess);
  }
}

// Whether an error is that memory ran out. The words of ptdeploy/memory.py.
bool ran_out_of_memory(const std::exception& error);

// That memory ran out while `doing`, with what was asked for at once where it is known. How much
// the machine has is said where it was the machine's, not that of a `device` of its own.
OutOfMemory out_of_memory(const std::string& doing, const std::exception& error,
                          const std::string& fix = "", const std::string& device = "cpu");

// What a run that failed is: memory that ran out, or else a fault of the engine, in these words.
[[noreturn]] void throw_run_error(const std::exception& error, const std::string& fault);

}  // namespace ptdeploy::detail
