// Token ids on the command line, "5,6,7". For text, put your tokenizer here: see ptdeploy's
// docs/cpp.md. The bundle's own is what engine.read("tokenizer") gives.
#pragma once

#include <sstream>
#include <string>

#include "ptdeploy/ptdeploy.hpp"

inline ptdeploy::Ids ids_of(const std::string& text) {
  ptdeploy::Ids ids;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) ids.push_back(std::stoll(part));
  return ids;
}
