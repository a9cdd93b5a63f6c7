// A named prompt: its file, held against the manifest. The same rules, in the same order and the same
// words, as ptdeploy/runtime/prompts.py.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace ptdeploy::detail {

using Sizes = std::vector<std::int64_t>;

// What of a prompt's file the engine takes.
struct PromptTensors {
  std::vector<float> virtual_tokens;               // (num_virtual_tokens, token_dim), or empty
  std::vector<float> prefix_kv;                    // of the manifest's shape, or empty
  std::map<std::string, std::vector<float>> head;  // by input, without the axis of prompts
};

// A prompt in memory, which is never changed: one that is read again is another one.
struct LoadedPrompt {
  std::string name;
  PromptInfo info;
  PromptTensors tensors;

  // How many positions it takes in front of a row's text.
  std::size_t length() const { return static_cast<std::size_t>(info.num_virtual_tokens); }
};

// One row's prompt; null for the base model alone.
using RowPrompt = std::shared_ptr<const LoadedPrompt>;

inline std::size_t length_of(const RowPrompt& prompt) { return prompt ? prompt->length() : 0; }

// The shape of a prompt's part of an input of role head.
Sizes head_part(const TensorSpec& spec, const PromptInfo& info);

// Reads `opened`, which errors call `file`. Throws BundleError unless it holds the virtual tokens
// whose hash the manifest has, or the prefix KV where there are none, and the prefix KV and the
// parameters of the head that the graph takes: float32, all finite.
RowPrompt read_prompt(const std::string& file, const std::string& opened, const Graph& graph,
                      const std::string& name, const PromptInfo& info);

// Throws BundleError unless a prompt's prefix KV is of as many layers as that of `first`, where both
// have one. Prefixes of a run's prompts lie one behind the other: a layer more or less in one would
// give its neighbour's rows another's keys and values.
void check_prefix(const std::string& where, const PromptInfo& info, const PromptInfo& first);

}  // namespace ptdeploy::detail
