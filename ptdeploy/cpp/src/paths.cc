#include "paths.hpp"

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

bool is_link(const std::string& path) {
  std::error_code ignored;
  return fs::is_symlink(fs::symlink_status(path, ignored));
}

}  // namespace ptdeploy::detail
