// Threads tied to cores, for a process that has its cores to itself (PTDEPLOY_PIN=1): the rules of
// ptdeploy/backends/ties.py.
#pragma once

#include <atomic>
#include <string>
#include <vector>

namespace ptdeploy::detail {

// The CPU of each of an engine's threads, the caller's first; none if they are not tied. Each is one
// hardware thread of a core of its own, of those that this process may run on. `threads` is how many
// are asked for, 0 for default_threads(). Throws InputError if the variable is neither 0 nor 1, if
// there are more threads than cores, or if this system ties no threads.
std::vector<int> tied_cpus(int threads, const std::string& system = "/sys");

// The CPU of an engine's first thread, which is whoever calls it: one caller at a time.
class Seat {
 public:
  explicit Seat(int cpu) : cpu_(cpu) {}

  // Ties the calling thread while it lives, unless another is tied or it may not run there.
  class Taken {
   public:
    explicit Taken(Seat* seat);
    ~Taken();
    Taken(const Taken&) = delete;
    Taken& operator=(const Taken&) = delete;

   private:
    Seat* seat_ = nullptr;
    std::vector<int> before_;
  };

 private:
  const int cpu_;
  std::atomic_flag taken_ = ATOMIC_FLAG_INIT;
};

}  // namespace ptdeploy::detail
