// How many threads an engine has on a CPU, and whether they wait by spinning: the rules of
// ptdeploy/backends/cores.py.
#pragma once

#include <string>

namespace ptdeploy::detail {

constexpr int kMostThreads = 1024;

// What PTDEPLOY_THREADS says, else usable_cores(). Throws InputError if it is no such number.
int default_threads();

// Whether PTDEPLOY_SPIN is 1. Throws InputError if it is neither 0 nor 1.
bool may_spin();

// The cores that this process may run on, two hardware threads of one counting once, at most what
// its cgroups' quotas add up to, rounded up.
int usable_cores(const std::string& proc = "/proc", const std::string& system = "/sys");

}  // namespace ptdeploy::detail
