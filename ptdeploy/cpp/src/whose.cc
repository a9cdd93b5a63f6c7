#include "whose.hpp"

#include <algorithm>
#include <initializer_list>

#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

bool is_one(const std::string& role, std::initializer_list<const char*> roles) {
  return std::find(roles.begin(), roles.end(), role) != roles.end();
}

}  // namespace

bool of_graph(const std::string& role) {
  return is_one(role, {"model", "weights", "engine", "engine_info"});
}

bool of_prompt(const std::string& role) {
  return is_one(role, {"prompt", "reference", "parity", "graph_parity"});
}

// [A-Za-z0-9][A-Za-z0-9._-]{0,63}
bool is_prompt_name(const std::string& name) {
  auto letter = [](char one) {
    return (one >= 'A' && one <= 'Z') || (one >= 'a' && one <= 'z') || (one >= '0' && one <= '9');
  };
  return !name.empty() && name.size() <= 64 && letter(name[0]) &&
         std::all_of(name.begin(), name.end(), [&letter](char one) {
           return letter(one) || one == '.' || one == '_' || one == '-';
         });
}

namespace {

std::string misnamed(const FileEntry& entry, const Manifest& manifest) {
  if (of_graph(entry.role))
    return entry.of && find(manifest.graphs, *entry.of) ? "" : "is not the name of a graph";
  // What shows of the base model alone is no prompt's.
  if (of_prompt(entry.role) && !entry.of && entry.role != "prompt") return "";
  if (of_prompt(entry.role))
    return entry.of && find(manifest.prompts, *entry.of) ? "" : "is not the name of a prompt";
  return entry.of ? "must be null" : "";
}

}  // namespace

std::string misnamed(const Manifest& manifest) {
  if (manifest.graphs.size() != 1 || manifest.graphs[0].first != kModel)
    return "graphs must have one, " + quoted(kModel);
  for (const auto& [name, prompt] : manifest.prompts)
    if (!is_prompt_name(name)) return "prompts has a name that no prompt can have";
  if (manifest.default_prompt && !find(manifest.prompts, *manifest.default_prompt))
    return "default_prompt is not the name of a prompt";
  for (std::size_t i = 0; i < manifest.files.size(); ++i) {
    const std::string problem = misnamed(manifest.files[i], manifest);
    if (!problem.empty()) return "files[" + std::to_string(i) + "].of " + problem;
  }
  return "";
}

std::optional<std::string> owner(const std::string& role, const Manifest& manifest) {
  if (of_graph(role)) return kModel;
  return of_prompt(role) ? manifest.default_prompt : std::nullopt;
}

std::string in_words(std::vector<std::string> names) {
  constexpr std::size_t kShown = 20;
  if (names.empty()) return "none";
  std::sort(names.begin(), names.end());
  std::string out;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i)
    out += (i > 0 ? ", " : "") + detail::quoted(names[i]);
  if (names.size() > kShown) out += " and " + std::to_string(names.size() - kShown) + " more";
  return out;
}

}  // namespace ptdeploy::detail
