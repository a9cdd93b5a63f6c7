// A bundle's folder held open: whatever takes its place later, its files stay what they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace ptdeploy::detail {

// errno of a call that failed, and kNotAFile for what is no regular file.
struct FileFault {
  int number;
};
constexpr int kNotAFile = -1;

// A folder, and the regular files in it that were asked for, by their paths inside it. The folder
// is looked up once, so that all its files are of one folder though a link to it is turned, or the
// folder itself renamed, at any moment. A file that was opened once stays that file. Nothing but
// regular files is ever opened. All but `same` throw FileFault.
class Held {
 public:
  explicit Held(const std::string& path);
  ~Held();
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  std::uintmax_t size(const std::string& name);
  // Gives `take` a file's bytes in pieces, at most `most` of them.
  void read(const std::string& name, std::uintmax_t most,
            const std::function<void(const char*, std::size_t)>& take) const;
  // A path that leads to the very file held here, for what opens files itself; where the system has
  // no such paths, the file's own.
  std::string reopened(const std::string& name) const;
  // A path through the held folder, beside which the folder's other files are found. It leads to
  // what has that name now: ask `same` afterwards.
  std::string inside(const std::string& name) const;
  // Whether these names still are the very files held here, unchanged.
  bool same(const std::vector<std::string>& names) const;

 private:
  int open(const std::string& name);
  int opened(const std::string& name) const;

  std::string path_;
  int folder_ = -1;
  std::map<std::string, int> files_;
};

// What is at a path just now, to be compared with what is there later: any change shows.
std::vector<std::int64_t> standing(const std::string& path);

}  // namespace ptdeploy::detail
