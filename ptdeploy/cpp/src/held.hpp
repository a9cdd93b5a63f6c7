// A bundle's folder held open: whatever takes its place later, its files stay what they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace ptdeploy::detail {

// errno of a call that failed, kNotAFile for what is no regular file, kReplaced for another file in the
// place of one that was looked at.
struct FileFault {
  int number;
};
constexpr int kNotAFile = -1, kReplaced = -2;
// In words.
std::string reason_of(int number);

// A folder, and the regular files in it that were asked for, by their paths inside it. The folder
// is looked up once, so that all its files are of one folder though a link to it is turned, or the
// folder itself renamed, at any moment. A file that was opened once stays that file; of one that was
// only looked at, another in its place is refused. Nothing but regular files is ever opened. All but
// `same` throw FileFault. Once its files were opened or looked at, any number of threads may read.
class Held {
 public:
  explicit Held(const std::string& path);
  ~Held();
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;

  // A path that leads to the very file, for what opens files itself; good until this is gone.
  class Reading {
   public:
    Reading(const Held& held, const std::string& name);
    ~Reading();
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;
    const std::string& path() const { return path_; }
    bool is_hollow() const;
    // Gives `take` the file's bytes in pieces, at most `most` of them.
    void read(std::uintmax_t most,
              const std::function<void(const char*, std::size_t)>& take) const;

   private:
    int descriptor_;
    bool own_;
    std::string path_;
  };

  // A file's size; it is held open from now on.
  std::uintmax_t size(const std::string& name);
  // The same without holding it open: it is opened again whenever it is read.
  std::uintmax_t look(const std::string& name);
  // Whether a large file is nearly all holes, so that reading it takes far longer than writing it
  // did. False where the file system does not say.
  bool is_hollow(const std::string& name) const;
  // What a `Reading` of the file reads.
  void read(const std::string& name, std::uintmax_t most,
            const std::function<void(const char*, std::size_t)>& take) const;
  // A path that leads to the very file held open, for what opens files itself; where the system has
  // no such paths, the file's own.
  std::string reopened(const std::string& name) const;
  // A path through the held folder, beside which the folder's other files are found. It leads to
  // what has that name now: ask `same` afterwards.
  std::string inside(const std::string& name) const;
  // Whether these names still are the very files that were opened or looked at, unchanged. A second
  // name for one of them, as `ptdeploy prompt add` gives, is no change.
  bool same(const std::vector<std::string>& names) const;

 private:
  using Identity = std::vector<std::int64_t>;
  int open_now(const std::string& name) const;
  std::string path_to(const std::string& name, int descriptor) const;

  std::string path_;
  int folder_ = -1;
  std::map<std::string, int> files_;
  std::map<std::string, Identity> seen_;
};

// How many files one folder may hold open beside those that it needs: a process has many.
std::size_t spare_descriptors();

// What is at a path just now, to be compared with what is there later: any change shows.
std::vector<std::int64_t> standing(const std::string& path);

}  // namespace ptdeploy::detail
