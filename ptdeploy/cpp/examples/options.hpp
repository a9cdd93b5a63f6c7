// What the examples' command lines have in common.
#pragma once

#include <algorithm>
#include <cstring>

#include "ptdeploy/ptdeploy.hpp"

// The prompt of a leading --prompt NAME, which is taken out of the arguments; without it the default
// one.
inline ptdeploy::Prompt take_prompt(int& argc, char** argv) {
  if (argc < 3 || std::strcmp(argv[1], "--prompt") != 0) return {};
  const ptdeploy::Prompt prompt = argv[2];
  std::copy(argv + 3, argv + argc, argv + 1);
  argc -= 2;
  return prompt;
}
