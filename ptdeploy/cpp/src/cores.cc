#include "cores.hpp"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "ptdeploy/ptdeploy.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

constexpr double kNoQuota = std::numeric_limits<double>::infinity();

std::string stripped(const std::string& text) {
  const char* blanks = " \t\r\n\f\v";
  const auto first = text.find_first_not_of(blanks);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return stripped(std::string(std::istreambuf_iterator<char>(file), {}));
}

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

// Microseconds a period as a number of cores.
double share(const std::string& quota, const std::string& period) {
  if (!is_number(quota) || !is_number(period)) return kNoQuota;
  const double most = std::strtod(quota.c_str(), nullptr), of = std::strtod(period.c_str(), nullptr);
  return most > 0 && of > 0 ? most / of : kNoQuota;
}

double quota_1(const std::string& folder) {
  return share(content_of(folder + "/cpu.cfs_quota_us"), content_of(folder + "/cpu.cfs_period_us"));
}

double quota_2(const std::string& folder) {
  const std::string text = content_of(folder + "/cpu.max");
  const auto blank = text.find(' ');
  return blank == std::string::npos ? kNoQuota : share(text.substr(0, blank), text.substr(blank + 1));
}

std::vector<std::string> parts_of(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

// The smallest quota of this process's cgroups and those around them.
double quota_of(const std::string& proc, const std::string& system) {
  const std::string mounts = system + "/fs/cgroup";
  double least = kNoQuota;
  for (const std::string& line : parts_of(content_of(proc + "/self/cgroup"), '\n')) {
    const auto first = line.find(':');
    if (first == std::string::npos) continue;
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const auto names = parts_of(controllers, ',');
    const bool unified = controllers.empty() && line.substr(0, first) == "0";
    if (!unified && std::find(names.begin(), names.end(), "cpu") == names.end()) continue;
    const auto places = unified ? std::vector<std::string>{mounts, mounts + "/unified"}
                                : std::vector<std::string>{mounts + "/" + controllers,
                                                           mounts + "/cpu"};
    // A container sees its own group as the root, whatever the path says.
    for (std::string folder : places) {
      const auto read = unified ? quota_2 : quota_1;
      least = std::min(least, read(folder));
      for (const std::string& part : parts_of(line.substr(second + 1), '/')) {
        if (part.empty() || part == "..") continue;
        folder += "/" + part;
        least = std::min(least, read(folder));
      }
    }
  }
  return least;
}

}  // namespace

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? stripped(value) : "";
}

std::vector<int> allowed_cpus() {
  std::vector<int> found;
#ifdef __linux__
  // Machines have more than the 1024 that one cpu_set_t holds.
  for (int count = 1024; count <= 1 << 16; count *= 2) {
    cpu_set_t* const set = CPU_ALLOC(count);
    if (!set) break;
    const std::size_t size = CPU_ALLOC_SIZE(count);
    CPU_ZERO_S(size, set);
    const bool told = sched_getaffinity(0, size, set) == 0;
    for (int cpu = 0; told && cpu < count; ++cpu)
      if (CPU_ISSET_S(cpu, size, set)) found.push_back(cpu);
    CPU_FREE(set);
    if (told) break;
  }
#endif
  if (found.empty())
    for (unsigned cpu = 0; cpu < std::max(1u, std::thread::hardware_concurrency()); ++cpu)
      found.push_back(static_cast<int>(cpu));
  return found;
}

std::vector<int> cpus_of_cores(const std::string& system) {
  std::set<std::string> cores;
  std::vector<int> first;
  for (int cpu : allowed_cpus()) {
    const std::string number = std::to_string(cpu);
    const std::string siblings = content_of(system + "/devices/system/cpu/cpu" + number +
                                         "/topology/thread_siblings_list");
    if (cores.insert(siblings.empty() ? number : siblings).second) first.push_back(cpu);
  }
  return first;
}

int usable_cores(const std::string& proc, const std::string& system) {
  const double count = std::min(static_cast<double>(cpus_of_cores(system).size()),
                                std::ceil(quota_of(proc, system)));
  return static_cast<int>(std::clamp(count, 1.0, static_cast<double>(kMostThreads)));
}

int default_threads() {
  const std::string given = variable("PTDEPLOY_THREADS");
  if (given.empty()) return usable_cores();
  const bool is_short_number = is_number(given) && given.size() < 10;
  const long threads = is_short_number ? std::strtol(given.c_str(), nullptr, 10) : 0;
  if (threads < 1 || threads > kMostThreads)
    throw InputError("PTDEPLOY_THREADS is " + quoted(given) +
                         "; it must be a whole number from 1 to " + std::to_string(kMostThreads) +
                         ".",
                     "Without it an engine has as many threads as there are cores for its process.");
  return static_cast<int>(threads);
}

std::optional<int> spin_us() {
  const std::optional<bool> spins = switched("PTDEPLOY_SPIN");
  if (!spins) return 50;
  if (*spins) return std::nullopt;
  return 0;
}

std::optional<bool> switched(const char* name) {
  const std::string given = variable(name);
  if (given.empty()) return std::nullopt;
  if (given == "0" || given == "1") return given == "1";
  throw InputError(name + std::string(" is ") + quoted(given) + "; it must be 0 or 1.");
}

}  // namespace ptdeploy::detail
