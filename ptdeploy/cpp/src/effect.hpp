// Whether a quantized engine has its prompt: how much of what the prompt changes is missing. As
// ptdeploy/parity/effect.py, which says why.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine_state.hpp"

namespace ptdeploy::detail {

// What of an engine's difference lies along a prompt's effect, position by position.
class Projection {
 public:
  // One row: the reference's logits, the engine's, and both with another prompt. Of each the last
  // positions count that all have. Without `got_other` the engine is taken to give the reference's
  // with the other prompt; with it, what quantization does to both alike, which prompts that differ
  // little would be lost in, does not count.
  void add(const Logits& want, const Logits& got, const Logits& other);
  void add(const Logits& want, const Logits& got, const Logits& other, const Logits& got_other);
  // Nothing where no row was added.
  std::optional<ParityEffect> result(const std::string& other) const;

 private:
  std::vector<double> along_, effect_;
};

// What does not hold, in words; empty where it does.
std::string effect_failure(const ParityEffect& one);

// That the prompt's effect is too small, in words; empty where it is not.
std::string effect_note(const ParityEffect& one);

}  // namespace ptdeploy::detail
