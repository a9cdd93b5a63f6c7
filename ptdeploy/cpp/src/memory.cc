#include "memory.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <sstream>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#endif

#include "numbers.hpp"
#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {
namespace {

namespace fs = std::filesystem;
using Size = std::optional<std::int64_t>;

// Not worth asking for.
constexpr std::uint64_t kSmall = 1 << 24;
// What cgroups of version 1 say where nothing is limited.
constexpr std::int64_t kUnlimited = std::int64_t{1} << 60;

Size least(Size a, Size b) {
  if (!a || !b) return a ? a : b;
  return std::min(*a, *b);
}

Size number_in(const fs::path& file) {
  std::ifstream stream(file);
  std::int64_t value = 0;
  if (stream >> value) return value;
  return std::nullopt;
}

// A number of a file that has one name and number on each line.
Size field_of(const fs::path& file, const std::string& name, std::int64_t unit) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    std::replace(line.begin(), line.end(), ':', ' ');
    std::istringstream words(line);
    std::string word;
    std::int64_t value = 0;
    if (words >> word >> value && word == name) return value * unit;
  }
  return std::nullopt;
}

Size of_group_at(const fs::path& place, const char* limit, const char* used) {
  const Size most = number_in(place / limit), now = number_in(place / used);
  if (!most || !now || *most >= kUnlimited) return std::nullopt;
  return *most - *now + field_of(place / "memory.stat", "inactive_file", 1).value_or(0);
}

// What the control group leaves; what it holds of files is given back when it is needed.
Size of_group() {
  std::ifstream stream("/proc/self/cgroup");
  std::string inside;
  bool found = false;
  for (std::string line; !found && std::getline(stream, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    if (line.rfind("0:", 0) != 0 && line.find(":memory:") == std::string::npos) continue;
    inside = line.substr(second + 1);
    found = true;
  }
  if (!found) return std::nullopt;
  Size left;
  for (bool unified : {true, false}) {
    const fs::path base = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    const char* limit = unified ? "memory.max" : "memory.limit_in_bytes";
    const char* used = unified ? "memory.current" : "memory.usage_in_bytes";
    // Within a container its own group is the root.
    left = least(left, of_group_at(base, limit, used));
    fs::path place = base;
    for (const fs::path& part : fs::path(inside).relative_path()) {
      place /= part;
      left = least(left, of_group_at(place, limit, used));
    }
  }
  return left;
}

// What RLIMIT_AS and RLIMIT_DATA leave.
Size of_process() {
  Size left;
#if defined(__unix__) || defined(__APPLE__)
  auto take = [&left](auto limit, const char* name) {
    rlimit most{};
    const Size used = field_of("/proc/self/status", name, 1024);
    if (used && getrlimit(limit, &most) == 0 && most.rlim_cur != RLIM_INFINITY)
      left = least(left, static_cast<std::int64_t>(most.rlim_cur) - *used);
  };
  take(RLIMIT_AS, "VmSize");
  take(RLIMIT_DATA, "VmData");
#endif
  return left;
}

}  // namespace

std::optional<std::uint64_t> available_memory() {
  const Size left = least(field_of("/proc/meminfo", "MemAvailable", 1024),
                          least(of_group(), of_process()));
  if (!left) return std::nullopt;
  return static_cast<std::uint64_t>(std::max<std::int64_t>(*left, 0));
}

void require_memory(std::uint64_t needed, const std::string& what) {
  if (needed <= kSmall) return;
  const auto left = available_memory();
  if (left && needed > *left)
    throw OutOfMemory(what + " would take " + in_words(needed) + ", but " + in_words(*left) +
                         " of memory are left.",
                     "Send fewer rows at once, or ask for fewer tokens.");
}

std::size_t product(std::initializer_list<std::size_t> sizes) {
  std::size_t result = 1;
  for (std::size_t size : sizes) {
    if (size > 0 && result > std::size_t{std::numeric_limits<std::ptrdiff_t>::max()} / size)
      throw std::bad_alloc();
    result *= size;
  }
  return result;
}

std::string in_words(std::uint64_t size) {
  static constexpr struct {
    std::uint64_t bytes;
    const char* words;
  } kUnits[] = {{std::uint64_t{1} << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}};
  for (const auto& unit : kUnits)
    if (size >= unit.bytes)
      return formatted(static_cast<double>(size) / static_cast<double>(unit.bytes), 1, 'f') + " " +
             unit.words;
  return formatted(static_cast<double>(size) / 1024, 0, 'f') + " KiB";
}

}  // namespace ptdeploy::detail
