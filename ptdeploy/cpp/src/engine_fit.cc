#include "engine_fit.hpp"

#include <algorithm>

namespace ptdeploy::detail {

std::string why_not_here(const EngineInfo& info, const EngineHost& host) {
  const std::string name = name_of(info.flavor);
  const std::string built = "The engine was built by " + name + " " + info.version;
  if (info.flavor != host.flavor)
    return built + "; this build of ptdeploy's C++ library runs those of " + name_of(host.flavor) +
           ".";
  // A version compatible engine could run with a newer one, but is refused for its host code.
  if (info.version != host.version)
    return built + "; " + name + " " + host.version + " is installed here.";
  const auto& wanted = info.compute_capabilities;
  const std::string here = std::to_string(host.major) + "." + std::to_string(host.minor);
  const bool fits = info.hardware_compatibility == HardwareCompatibility::ampere_plus
                        ? host.major >= 8
                        : std::find(wanted.begin(), wanted.end(), here) != wanted.end();
  if (wanted.empty() || fits) return "";
  std::string list;
  for (const std::string& one : wanted) list += (list.empty() ? "" : ", ") + one;
  return built + " for compute capability " + list +
         (info.gpu.empty() ? "" : " (" + info.gpu + ")") + "; here is " + here + " (" + host.gpu +
         ").";
}

namespace {

// A word as a POSIX shell takes it, written as Python's shlex.quote does.
std::string shell_word(const std::string& word) {
  const char* plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
  std::string out = "'";
  for (const char one : word) {
    if (one == '\'')
      out += "'\"'\"'";
    else
      out += one;
  }
  return out + "'";
}

}  // namespace

std::string how_to_rebuild(const std::string& bundle, bool has_model) {
  if (has_model) return "Build it for this machine: ptdeploy rebuild " + shell_word(bundle);
  return "Compile the checkpoint here: ptdeploy compile CHECKPOINT --target trt. (With --keep-onnx "
         "a bundle can be rebuilt without the checkpoint.)";
}

}  // namespace ptdeploy::detail
