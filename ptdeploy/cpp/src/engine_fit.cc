#include "engine_fit.hpp"

#include <algorithm>

namespace ptdeploy::detail {
namespace {

bool among(const std::vector<std::string>& capabilities, const std::string& one) {
  return std::find(capabilities.begin(), capabilities.end(), one) != capabilities.end();
}

std::string listed(const std::vector<std::string>& capabilities) {
  std::string out;
  for (const std::string& one : capabilities) out += (out.empty() ? "" : ", ") + one;
  return out;
}

std::string capability_of(const EngineHost& host) {
  return std::to_string(host.major) + "." + std::to_string(host.minor);
}

}  // namespace

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
  const std::string here = capability_of(host);
  if (among(info.left_out, here))
    return built + " for every GPU it supports but compute capability " + listed(info.left_out) +
           "; here is " + here + " (" + host.gpu + ").";
  const bool fits = info.hardware_compatibility == HardwareCompatibility::ampere_plus
                        ? host.major >= 8
                        : among(wanted, here);
  if (wanted.empty() || fits) return "";
  return built + " for compute capability " + listed(wanted) +
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

std::string how_to_fit(const EngineInfo& info, const EngineHost& host, const std::string& bundle,
                       bool has_model) {
  const std::string here = capability_of(host);
  // Made anew as it was, it would leave this GPU out again.
  if (among(info.left_out, here))
    return "Compile the checkpoint for it: --compute-capability " + here +
           ", with a --precision that it has.";
  return how_to_rebuild(bundle, has_model);
}

std::string how_to_rebuild(const std::string& bundle, bool has_model) {
  if (has_model) return "Build it for this machine: ptdeploy rebuild " + shell_word(bundle);
  return "Compile the checkpoint here: ptdeploy compile CHECKPOINT --target trt. (With --keep-onnx "
         "a bundle can be rebuilt without the checkpoint.)";
}

}  // namespace ptdeploy::detail
