#include "paths.hpp"

#include <deque>
#include <filesystem>
#include <vector>

namespace ptdeploy::detail {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> parts(const std::string& path) {
  std::vector<std::string> out;
  std::size_t begin = 0;
  while (begin <= path.size()) {
    std::size_t end = std::min(path.find('/', begin), path.size());
    std::string part = path.substr(begin, end - begin);
    if (!part.empty() && part != ".") out.push_back(part);
    begin = end + 1;
  }
  return out;
}

std::string absolute(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) out += "/" + name;
  return out.empty() ? "/" : out;
}

}  // namespace

std::string tidy(const std::string& path) {
  std::string out;
  for (const std::string& part : parts(path)) out += (out.empty() ? "" : "/") + part;
  if (!path.empty() && path[0] == '/') return "/" + out;
  return out.empty() ? "." : out;
}

std::string join(const std::string& folder, const std::string& inside) {
  std::string tail = tidy(inside);
  if (tail == ".") return folder;
  if (folder == ".") return tail;
  return folder.back() == '/' ? folder + tail : folder + "/" + tail;
}

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool is_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::string resolve(const std::string& path) {
  std::error_code error;
  std::string start = path;
  if (start.empty() || start[0] != '/') start = fs::current_path(error).string() + "/" + start;
  auto given = parts(start);
  std::deque<std::string> todo(given.begin(), given.end());
  std::vector<std::string> done;
  int links = 0;
  while (!todo.empty()) {
    std::string name = todo.front();
    todo.pop_front();
    if (name == "..") {
      if (!done.empty()) done.pop_back();
      continue;
    }
    done.push_back(name);
    if (!fs::is_symlink(fs::symlink_status(absolute(done), error))) continue;
    if (++links > 40) return "";
    std::string target = fs::read_symlink(absolute(done), error).string();
    if (error) continue;
    done.pop_back();
    if (!target.empty() && target[0] == '/') done.clear();
    auto steps = parts(target);
    todo.insert(todo.begin(), steps.begin(), steps.end());
  }
  return absolute(done);
}

bool is_inside(const std::string& path, const std::string& folder) {
  if (folder == "/" || path == folder) return true;
  return path.size() > folder.size() && path.compare(0, folder.size(), folder) == 0 &&
         path[folder.size()] == '/';
}

}  // namespace ptdeploy::detail
