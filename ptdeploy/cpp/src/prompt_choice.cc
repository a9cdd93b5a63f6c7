#include "prompt_choice.hpp"

namespace ptdeploy {

Prompt::Prompt(std::string name) : kind_(Kind::named), name_(std::move(name)) {}

Prompt::Prompt(const char* name) : kind_(Kind::named) {
  if (!name)
    throw InputError("A prompt's name is a null pointer.",
                     "Prompt() is the default prompt, Prompt::base() the base model alone.");
  name_ = name;
}

Prompt Prompt::base() {
  Prompt prompt;
  prompt.kind_ = Kind::base;
  return prompt;
}

Prompts::Prompts(Prompt one) : prompts_{std::move(one)} {}
Prompts::Prompts(std::string name) : prompts_{Prompt(std::move(name))} {}
Prompts::Prompts(const char* name) : prompts_{Prompt(name)} {}
Prompts::Prompts(std::initializer_list<Prompt> each) : one_each_(true), prompts_(each) {}
Prompts::Prompts(std::vector<Prompt> each) : one_each_(true), prompts_(std::move(each)) {}
Prompts::Prompts(const std::vector<std::string>& names)
    : one_each_(true), prompts_(names.begin(), names.end()) {}

namespace detail {

std::vector<RowPrompt> Chosen::of(std::size_t rows) const {
  if (!one_each) return std::vector<RowPrompt>(rows, prompts[0]);
  if (prompts.size() != rows)
    throw InputError("prompt names " + std::to_string(prompts.size()) + ", but the request has " +
                         std::to_string(rows) + " rows.",
                     "Name one for each row, or one for all.");
  return prompts;
}

}  // namespace detail
}  // namespace ptdeploy
