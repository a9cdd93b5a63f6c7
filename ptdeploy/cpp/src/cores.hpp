// How many threads an engine has on a CPU, and whether they wait by spinning: the rules of
// ptdeploy/backends/cores.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace ptdeploy::detail {

constexpr int kMostThreads = 1024;

// An environment variable without the blanks around it, "" if it is not set.
std::string variable(const char* name);

// Whether an environment variable is 1, not 0; nothing if it is not set. Throws InputError if it is
// anything else.
std::optional<bool> switched(const char* name);

// The CPUs, hardware threads, that the calling thread may run on, ascending.
std::vector<int> allowed_cpus();

// The first CPU of each core that the calling thread may run on, ascending.
std::vector<int> cpus_of_cores(const std::string& system = "/sys");

// What PTDEPLOY_THREADS says, else usable_cores(). Throws InputError if it is no such number.
int default_threads();

// How many microseconds a thread that waits for work keeps its core busy: 50, 0 with
// PTDEPLOY_SPIN=0, nothing with PTDEPLOY_SPIN=1: as long as the engine's own default, also between
// requests. Throws InputError if the variable is neither 0 nor 1.
std::optional<int> spin_us();

// The cores that this process may run on, two hardware threads of one counting once, at most what
// its cgroups' quotas add up to, rounded up.
int usable_cores(const std::string& proc = "/proc", const std::string& system = "/sys");

}  // namespace ptdeploy::detail
