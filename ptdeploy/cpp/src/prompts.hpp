// Named prompts: their files, held against the manifest, and what an engine is given of them. The same
// rules, in the same order and the same words, as ptdeploy/runtime/prompts.py.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backend.hpp"

namespace ptdeploy::detail {

// What a prompt's file holds.
struct PromptTensors {
  std::optional<std::vector<float>> virtual_tokens;  // (num_virtual_tokens, token_dim)
  std::optional<std::vector<float>> prefix_kv;       // of the manifest's shape
  std::map<std::string, std::vector<float>> head;    // by input, without the axis of prompts
};

// A prompt in memory, and its place among the engine's.
struct LoadedPrompt {
  std::string name;
  PromptInfo info;
  PromptTensors tensors;
  std::int64_t first_row = 0;  // of its virtual tokens in the table
  std::int64_t index = 0;      // among the prompts

  std::size_t length() const { return static_cast<std::size_t>(info.num_virtual_tokens); }
  // The ids by which the virtual tokens are looked up: behind the vocabulary.
  Ids virtual_ids(const Limits& limits) const;
};

// The default prompt. Throws BundleError unless its file holds the virtual tokens whose hash the
// manifest has, or the prefix KV where there are none, and the prefix KV and the parameters of the
// head that the engine takes: float32, all finite.
LoadedPrompt load_prompt(const Bundle& bundle);

// What an engine is given of its prompts at every run: put where it computes, once.
class PromptInputs {
 public:
  PromptInputs(Backend& backend, const Graph& graph, const LoadedPrompt& prompt);
  // None where the engine takes none.
  const std::vector<Bound>& bound() const { return bound_; }

 private:
  void add(Backend& backend, const TensorSpec& spec, std::vector<std::int64_t> shape,
           const std::vector<float>& values);

  std::vector<Placed> memory_;
  std::vector<Bound> bound_;
};

}  // namespace ptdeploy::detail
