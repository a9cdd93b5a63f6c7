#include "ties.hpp"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "cores.hpp"
#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {
namespace {

bool tie_this_thread([[maybe_unused]] const std::vector<int>& cpus) {
#ifdef __linux__
  const int count = *std::max_element(cpus.begin(), cpus.end()) + 1;
  cpu_set_t* const set = CPU_ALLOC(count);
  if (!set) return false;
  const std::size_t size = CPU_ALLOC_SIZE(count);
  CPU_ZERO_S(size, set);
  for (int cpu : cpus) CPU_SET_S(cpu, size, set);
  const bool tied = sched_setaffinity(0, size, set) == 0;
  CPU_FREE(set);
  return tied;
#else
  return false;
#endif
}

}  // namespace

std::vector<int> tied_cpus([[maybe_unused]] int threads,
                           [[maybe_unused]] const std::string& system) {
  if (!switched("PTDEPLOY_PIN").value_or(false)) return {};
#ifdef __linux__
  std::vector<int> cpus = cpus_of_cores(system);
  const auto wanted = static_cast<std::size_t>(threads > 0 ? threads : default_threads());
  if (wanted > cpus.size())
    throw InputError("PTDEPLOY_PIN is '1'; " + std::to_string(wanted) +
                         " threads cannot have a core each: this process has " +
                         std::to_string(cpus.size()) + ".",
                     "Give the engine fewer threads, or unset PTDEPLOY_PIN.");
  cpus.resize(wanted);
  return cpus;
#else
  throw InputError("PTDEPLOY_PIN is '1'; this system ties no threads to cores.",
                   "Unset PTDEPLOY_PIN.");
#endif
}

Seat::Taken::Taken(Seat* seat) {
  if (!seat) return;
  // All that may throw comes first: what is taken must be given back.
  std::vector<int> cpus = allowed_cpus();
  const std::vector<int> own{seat->cpu_};
  if (std::find(cpus.begin(), cpus.end(), seat->cpu_) == cpus.end()) return;
  if (seat->taken_.test_and_set(std::memory_order_acquire)) return;
  seat_ = seat;
  // Where the system refuses it, a request is no slower than untied.
  if (tie_this_thread(own)) before_ = std::move(cpus);
}

Seat::Taken::~Taken() {
  if (!before_.empty()) tie_this_thread(before_);
  if (seat_) seat_->taken_.clear(std::memory_order_release);
}

}  // namespace ptdeploy::detail
