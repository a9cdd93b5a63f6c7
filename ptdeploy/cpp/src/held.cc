#include "held.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "paths.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::size_t kChunk = 1 << 20;
constexpr const char* kOpened = "/proc/self/fd";
// Holes of a smaller file are read in no time, and of a larger one it may have so many for each
// byte on the disk: file systems that compress may keep what is zero as holes.
constexpr off_t kSoonRead = 1 << 30, kMostHoles = 16;

// A descriptor of the folder itself is enough to look names up in it.
#ifdef O_PATH
constexpr int kFolder = O_PATH | O_DIRECTORY | O_CLOEXEC;
#else
constexpr int kFolder = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
#endif

bool has_opened_paths() { return is_folder(kOpened); }

#ifdef __APPLE__
timespec written(const struct stat& found) { return found.st_mtimespec; }
timespec changed(const struct stat& found) { return found.st_ctimespec; }
#else
timespec written(const struct stat& found) { return found.st_mtim; }
timespec changed(const struct stat& found) { return found.st_ctim; }
#endif

void append(std::vector<std::int64_t>& out, const timespec& time) {
  out.push_back(static_cast<std::int64_t>(time.tv_sec));
  out.push_back(static_cast<std::int64_t>(time.tv_nsec));
}

// What tells a file from another one, and from itself once it was written to.
std::vector<std::int64_t> content_of(const struct stat& found) {
  std::vector<std::int64_t> out{static_cast<std::int64_t>(found.st_dev),
                                static_cast<std::int64_t>(found.st_ino),
                                static_cast<std::int64_t>(found.st_size)};
  append(out, written(found));
  return out;
}

struct stat stat_of(int descriptor) {
  struct stat found {};
  if (::fstat(descriptor, &found) != 0) throw FileFault{errno};
  return found;
}

}  // namespace

Held::Held(const std::string& path) : path_(path), folder_(::open(path.c_str(), kFolder)) {
  if (folder_ < 0) throw FileFault{errno};
}

Held::~Held() {
  for (const auto& [name, descriptor] : files_) ::close(descriptor);
  ::close(folder_);
}

int Held::open_now(const std::string& name) const {
  struct stat found {};
  // Looked at first: a fifo would wait for its writer, a device may act on being opened.
  if (::fstatat(folder_, name.c_str(), &found, 0) != 0) throw FileFault{errno};
  if (!S_ISREG(found.st_mode)) throw FileFault{kNotAFile};
  const int descriptor = ::openat(folder_, name.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) throw FileFault{errno};
  int fault = 0;
  if (::fstat(descriptor, &found) != 0 || !S_ISREG(found.st_mode)) fault = kNotAFile;
  const auto seen = seen_.find(name);
  if (fault == 0 && seen != seen_.end() && seen->second != content_of(found)) fault = kReplaced;
  if (fault == 0) return descriptor;
  ::close(descriptor);
  throw FileFault{fault};
}

std::string Held::path_to(const std::string& name, int descriptor) const {
  return has_opened_paths() ? std::string(kOpened) + "/" + std::to_string(descriptor)
                            : join(path_, name);
}

Held::Reading::Reading(const Held& held, const std::string& name) {
  const auto known = held.files_.find(name);
  own_ = known == held.files_.end();
  descriptor_ = own_ ? held.open_now(name) : known->second;
  path_ = held.path_to(name, descriptor_);
}

Held::Reading::~Reading() {
  if (own_) ::close(descriptor_);
}

std::uintmax_t Held::size(const std::string& name) {
  auto known = files_.find(name);
  if (known == files_.end()) known = files_.emplace(name, open_now(name)).first;
  return static_cast<std::uintmax_t>(stat_of(known->second).st_size);
}

std::uintmax_t Held::look(const std::string& name) {
  const auto known = files_.find(name);
  if (known != files_.end()) return static_cast<std::uintmax_t>(stat_of(known->second).st_size);
  struct stat found {};
  if (::fstatat(folder_, name.c_str(), &found, 0) != 0) throw FileFault{errno};
  if (!S_ISREG(found.st_mode)) throw FileFault{kNotAFile};
  seen_[name] = content_of(found);
  return static_cast<std::uintmax_t>(found.st_size);
}

void Held::Reading::read(std::uintmax_t most,
                         const std::function<void(const char*, std::size_t)>& take) const {
  auto chunk = std::make_unique<char[]>(kChunk);
  for (std::uintmax_t place = 0; place < most;) {
    const auto wanted = static_cast<std::size_t>(std::min<std::uintmax_t>(kChunk, most - place));
    const ssize_t got = ::pread(descriptor_, chunk.get(), wanted, static_cast<off_t>(place));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw FileFault{errno};
    if (got == 0) return;
    take(chunk.get(), static_cast<std::size_t>(got));
    place += static_cast<std::uintmax_t>(got);
  }
}

void Held::read(const std::string& name, std::uintmax_t most,
                const std::function<void(const char*, std::size_t)>& take) const {
  Reading(*this, name).read(most, take);
}

bool Held::Reading::is_hollow() const {
#ifdef SEEK_DATA
  const off_t size = stat_of(descriptor_).st_size;
  if (size <= kSoonRead) return false;
  off_t data = 0, end = 0;
  while (data < size / kMostHoles) {
    const off_t start = ::lseek(descriptor_, end, SEEK_DATA);
    if (start >= 0) end = ::lseek(descriptor_, start, SEEK_HOLE);
    // The rest is one hole.
    if (start < 0 || end < 0) return errno == ENXIO;
    data += end - start;
  }
#endif
  return false;
}

bool Held::is_hollow(const std::string& name) const { return Reading(*this, name).is_hollow(); }

std::string Held::reopened(const std::string& name) const {
  const auto known = files_.find(name);
  return known == files_.end() ? join(path_, name) : path_to(name, known->second);
}

std::string Held::inside(const std::string& name) const {
  if (!has_opened_paths()) return join(path_, name);
  return join(std::string(kOpened) + "/" + std::to_string(folder_), name);
}

bool Held::same(const std::vector<std::string>& names) const {
  for (const std::string& name : names) {
    struct stat now {}, then {};
    if (::fstatat(folder_, name.c_str(), &now, 0) != 0) return false;
    const auto known = files_.find(name);
    const auto seen = seen_.find(name);
    if (known != files_.end()) {
      if (::fstat(known->second, &then) != 0 || content_of(now) != content_of(then)) return false;
    } else if (seen == seen_.end() || content_of(now) != seen->second) {
      return false;
    }
  }
  return true;
}

std::string reason_of(int number) {
  if (number == kNotAFile) return "Not a regular file";
  if (number == kReplaced) return "Replaced by another file";
  return std::generic_category().message(number);
}

std::size_t spare_descriptors() {
  constexpr rlim_t kMostSpare = 1024;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return static_cast<std::size_t>(kMostSpare);
  return static_cast<std::size_t>(std::min(limit.rlim_cur / 16, kMostSpare));
}

std::vector<std::int64_t> standing(const std::string& path) {
  std::vector<std::int64_t> out;
  struct stat found {};
  auto look = [&out, &found](int failed) {
    out.push_back(failed);
    if (failed != 0) return;
    for (std::int64_t one : content_of(found)) out.push_back(one);
    append(out, changed(found));
  };
  look(::lstat(path.c_str(), &found));
  look(::stat(path.c_str(), &found));
  look(::stat(join(path, "manifest.json").c_str(), &found));
  return out;
}

}  // namespace ptdeploy::detail
