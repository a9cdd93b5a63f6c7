// KV buffers of one engine: made, kept for the next request, and fed, as in ptdeploy/runtime/buffers.py.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kv_buffer.hpp"
#include "prompt_inputs.hpp"

namespace ptdeploy::detail {

// A KV buffer in which each row begins with its own prompt, and nothing else. A prompt without a
// prefix KV is not in it: it is fed before the row's text.
struct StartedRows {
  std::unique_ptr<KVBuffer> kv;
  std::vector<RowPrompt> prompts;
  SharedStack stack;

  const Ids& before(std::size_t row) const { return stack->before(prompts[row]); }
  // What is prefilled for a row of these ids.
  Ids fed(std::size_t row, const Ids& ids) const;
};

// Any number of threads may use it.
class KVBuffers {
 public:
  // All must outlive it.
  KVBuffers(Backend& backend, const KVLayout& layout, const Limits& limits,
            const PromptInputs& inputs);

  // Rows of these prompts and at most so many tokens of text each, in the last request's buffer if
  // they fit. Throws InputError if there are more rows than the bundle was compiled for, or they do
  // not fit in memory.
  StartedRows take(const std::vector<RowPrompt>& prompts,
                   const std::vector<std::size_t>& tokens) const;
  // Leaves a buffer to the next request.
  void keep(StartedRows rows) const;
  // Lets go of all that holds a prompt.
  void forget(const RowPrompt& prompt) const;
  // One row of at most `tokens` tokens of text, in a new buffer which nobody else gets.
  StartedRows own(const RowPrompt& prompt, std::size_t tokens) const;
  // The same with a stack of that prompt, which may have been unloaded: no other run gets it.
  StartedRows own(const RowPrompt& prompt, std::size_t tokens, SharedStack stack) const;

 private:
  std::unique_ptr<KVBuffer> take_spare() const;

  Backend& backend_;
  const KVLayout& layout_;
  const Limits& limits_;
  const PromptInputs& inputs_;
  // The last request's, taken out while it is used: two threads never share one.
  mutable std::mutex lock_;
  mutable StartedRows spare_;
};

}  // namespace ptdeploy::detail
