// What prompts give a run beside the text: the inputs of a graph that belong to them, as in
// ptdeploy/runtime/prompt_inputs.py.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "backend.hpp"
#include "prompts.hpp"

namespace ptdeploy::detail {

// So many prompts one run takes; and those of the stacks that are kept for the next runs, together.
constexpr std::size_t kMostInARun = 256;

// Some prompts where the engine computes, one behind the other.
class PromptStack {
 public:
  // `prompts` are distinct, and none is null. `vocabulary` is the first id behind the model's own.
  PromptStack(Backend& backend, const Graph& graph, std::int64_t vocabulary,
              std::vector<RowPrompt> prompts);

  const std::vector<RowPrompt>& prompts() const { return prompts_; }
  // The inputs that no row changes; none where the graph takes none.
  const std::vector<Bound>& bound() const { return bound_; }
  // A prompt's place among them; 0 for the base model.
  std::int64_t index(const RowPrompt& prompt) const;
  // What is fed before the text of a row: ids behind the vocabulary; none of a prefix KV.
  const Ids& before(const RowPrompt& prompt) const;
  // Of a run's logits, whose classes are as many as those of the prompt that has most.
  std::size_t labels() const;

 private:
  void add(Backend& backend, const TensorSpec& spec, Sizes shape, const std::vector<float>& values);
  void add_table(Backend& backend, const TensorSpec& spec);
  void add_prefix(Backend& backend, const TensorSpec& spec);
  void add_head(Backend& backend, const TensorSpec& spec);

  std::vector<RowPrompt> prompts_;
  std::map<const LoadedPrompt*, Ids> ids_;
  std::vector<Placed> memory_;
  std::vector<Bound> bound_;
};

using SharedStack = std::shared_ptr<const PromptStack>;

// Stacks of the prompts that runs have in common, placed once and kept for the next runs. A head
// computes its product for every stacked prompt, so none is stacked that no row has. Any number of
// threads may use it.
class PromptInputs {
 public:
  PromptInputs(Backend& backend, const Graph& graph, std::int64_t vocabulary);

  // The stack of the prompts that these rows have.
  SharedStack stack(const std::vector<RowPrompt>& rows) const;
  // Lets go of all that holds a prompt.
  void forget(const RowPrompt& prompt) const;

 private:
  SharedStack kept(const std::vector<RowPrompt>& prompts) const;
  // The stack that other runs get from now on: one of these prompts that another thread has placed
  // meanwhile, where there is one.
  SharedStack keep(SharedStack made) const;
  // The caller has the lock.
  SharedStack stack_of(const std::vector<RowPrompt>& prompts) const;

  Backend& backend_;
  const Graph& graph_;
  std::int64_t vocabulary_;
  mutable std::mutex lock_;
  mutable std::list<SharedStack> stacks_;  // the last used last
};

}  // namespace ptdeploy::detail
