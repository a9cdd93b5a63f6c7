// A request's prompts while it runs. The words are those of ptdeploy/runtime/prompt_choice.py.
#pragma once

#include <vector>

#include "prompts.hpp"

namespace ptdeploy::detail {

// One for all of the rows, or each row's own.
struct Chosen {
  std::vector<RowPrompt> prompts;
  bool one_each = false;

  // The prompt of each of so many rows. Throws InputError if there are not as many.
  std::vector<RowPrompt> of(std::size_t rows) const;
};

}  // namespace ptdeploy::detail
