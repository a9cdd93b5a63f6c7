#include "openvino_errors.hpp"

#include <sstream>
#include <utility>

namespace ptdeploy::detail {
namespace {

const std::string kNode = "[CPU] ", kNamed = " node with name '";

std::string stripped(const std::string& text, const char* letters) {
  const std::size_t first = text.find_first_not_of(letters);
  if (first == text.npos) return "";
  return text.substr(first, text.find_last_not_of(letters) - first + 1);
}

// Takes out what begins so, to the end of the word that follows: a place in OpenVINO's sources.
void take_out(std::string& line, const std::string& begin) {
  for (std::size_t at = line.find(begin); at != line.npos; at = line.find(begin, at)) {
    const std::size_t end = line.find_first_of(" \t", at + begin.size());
    line.erase(at, end == line.npos ? line.npos : end - at);
  }
}

// "Check 'CONDITION' failed at PLACE": the condition is C++, and nobody's who reads this.
void take_out_check(std::string& line) {
  const std::size_t first = line.find("Check '"), last = line.rfind("' failed at ");
  if (first == line.npos || last == line.npos || last < first) return;
  line.erase(first, last + 2 - first);
  take_out(line, "failed at ");
}

}  // namespace

std::string openvino_reason(const std::exception& error) {
  const std::string text = error.what();
  const std::pair<std::string, std::string> whole[] = {
      {"No conversion rule found for operations: ", "it has no operators "},
      {"Conversion is failed for: ", "it cannot convert "}};
  for (const auto& [begin, instead] : whole)
    if (const std::size_t at = text.find(begin); at != text.npos) {
      const std::size_t from = at + begin.size();
      return instead + stripped(text.substr(from, text.find('\n', from) - from), " ");
    }
  std::string place;
  std::istringstream lines(text);
  std::string words;
  for (std::string line; std::getline(lines, line);) {
    const std::size_t node = line.find(kNode), named = line.find(kNamed);
    if (place.empty() && node != line.npos && named != line.npos && node < named) {
      const std::size_t from = named + kNamed.size(), end = line.find('\'', from);
      const std::string name = line.substr(from, end - from);
      const std::size_t slash = name.rfind('/');
      place = line.substr(node + kNode.size(), named - node - kNode.size());
      if (slash != name.npos) place += " at " + name.substr(0, slash);
      line.erase(node, end == line.npos ? line.npos : end + 1 - node);
    }
    take_out(line, "Exception from ");
    take_out_check(line);
    take_out(line, "FrontEnd API failed with ");
    line = stripped(line, " \t\r:");
    if (words.empty() && line != "Summary" && line != "Model wasn't fully converted.") words = line;
  }
  if (words.empty()) words = "unknown";
  words = stripped(words, " .:");
  return place.empty() ? words : place + ": " + words;
}

}  // namespace ptdeploy::detail
