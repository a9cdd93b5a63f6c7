#include "held.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "paths.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::size_t kChunk = 1 << 20;
constexpr const char* kOpened = "/proc/self/fd";

// A descriptor of the folder itself is enough to look names up in it.
#ifdef O_PATH
constexpr int kFolder = O_PATH | O_DIRECTORY | O_CLOEXEC;
#else
constexpr int kFolder = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
#endif

bool has_opened_paths() { return is_folder(kOpened); }

void append(std::vector<std::int64_t>& out, const struct stat& found) {
#ifdef __APPLE__
  const timespec written = found.st_mtimespec, changed = found.st_ctimespec;
#else
  const timespec written = found.st_mtim, changed = found.st_ctim;
#endif
  for (auto value : {static_cast<std::int64_t>(found.st_dev), static_cast<std::int64_t>(found.st_ino),
                     static_cast<std::int64_t>(found.st_size),
                     static_cast<std::int64_t>(written.tv_sec),
                     static_cast<std::int64_t>(written.tv_nsec),
                     static_cast<std::int64_t>(changed.tv_sec),
                     static_cast<std::int64_t>(changed.tv_nsec)})
    out.push_back(value);
}

}  // namespace

Held::Held(const std::string& path) : path_(path), folder_(::open(path.c_str(), kFolder)) {
  if (folder_ < 0) throw FileFault{errno};
}

Held::~Held() {
  for (const auto& [name, descriptor] : files_) ::close(descriptor);
  ::close(folder_);
}

int Held::open(const std::string& name) {
  const auto known = files_.find(name);
  if (known != files_.end()) return known->second;
  struct stat found {};
  // Looked at first: a fifo would wait for its writer, a device may act on being opened.
  if (::fstatat(folder_, name.c_str(), &found, 0) != 0) throw FileFault{errno};
  if (!S_ISREG(found.st_mode)) throw FileFault{kNotAFile};
  const int descriptor = ::openat(folder_, name.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) throw FileFault{errno};
  if (::fstat(descriptor, &found) != 0 || !S_ISREG(found.st_mode)) {
    ::close(descriptor);
    throw FileFault{kNotAFile};
  }
  files_.emplace(name, descriptor);
  return descriptor;
}

int Held::opened(const std::string& name) const {
  const auto known = files_.find(name);
  if (known == files_.end()) throw FileFault{ENOENT};
  return known->second;
}

std::uintmax_t Held::size(const std::string& name) {
  struct stat found {};
  if (::fstat(open(name), &found) != 0) throw FileFault{errno};
  return static_cast<std::uintmax_t>(found.st_size);
}

void Held::read(const std::string& name, std::uintmax_t most,
                const std::function<void(const char*, std::size_t)>& take) const {
  const int descriptor = opened(name);
  auto chunk = std::make_unique<char[]>(kChunk);
  for (std::uintmax_t place = 0; place < most;) {
    const auto wanted = static_cast<std::size_t>(std::min<std::uintmax_t>(kChunk, most - place));
    const ssize_t got = ::pread(descriptor, chunk.get(), wanted, static_cast<off_t>(place));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw FileFault{errno};
    if (got == 0) return;
    take(chunk.get(), static_cast<std::size_t>(got));
    place += static_cast<std::uintmax_t>(got);
  }
}

std::string Held::reopened(const std::string& name) const {
  const auto known = files_.find(name);
  if (known == files_.end() || !has_opened_paths()) return join(path_, name);
  return std::string(kOpened) + "/" + std::to_string(known->second);
}

std::string Held::inside(const std::string& name) const {
  if (!has_opened_paths()) return join(path_, name);
  return join(std::string(kOpened) + "/" + std::to_string(folder_), name);
}

bool Held::same(const std::vector<std::string>& names) const {
  for (const std::string& name : names) {
    struct stat now {}, then {};
    const auto known = files_.find(name);
    if (known == files_.end() || ::fstatat(folder_, name.c_str(), &now, 0) != 0 ||
        ::fstat(known->second, &then) != 0)
      return false;
    std::vector<std::int64_t> one, other;
    append(one, now);
    append(other, then);
    if (one != other) return false;
  }
  return true;
}

std::vector<std::int64_t> standing(const std::string& path) {
  std::vector<std::int64_t> out;
  struct stat found {};
  auto look = [&out, &found](int failed) {
    out.push_back(failed);
    if (failed == 0) append(out, found);
  };
  look(::lstat(path.c_str(), &found));
  look(::stat(path.c_str(), &found));
  look(::stat(join(path, "manifest.json").c_str(), &found));
  return out;
}

}  // namespace ptdeploy::detail
