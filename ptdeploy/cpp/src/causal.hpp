// CAUSAL_LM: generation over a KV buffer whose first slots are the prompt's frozen prefix KV.
#pragma once

#include <mutex>

#include "engine_state.hpp"
#include "kv_buffer.hpp"
#include "prompts.hpp"

namespace ptdeploy::detail {

class CausalEngine : public TaskEngine {
 public:
  // Throws TargetUnavailable if the backend keeps no such KV, BundleError if the prompt's file is
  // not what the manifest says.
  explicit CausalEngine(const EngineState& state);

  std::size_t columns() const override { return layout_.vocabulary; }
  std::vector<Logits> logits(const std::vector<Ids>& rows,
                             const std::vector<Ids>& segments) const override;
  std::vector<Generated> generate(const std::vector<Ids>& rows, const GenerateOptions& given,
                                  const OnToken& on_token) const override;
  std::unique_ptr<SessionState> session(std::shared_ptr<const EngineState> owner,
                                        std::size_t max_tokens) const override;

  const KVLayout& layout() const { return layout_; }
  // A prompt that is not frozen is fed like text, under ids behind the vocabulary; else empty.
  const Ids& virtual_ids() const { return virtual_ids_; }
  // The model's defaults with what a request changes. Throws InputError on a bad value.
  GenerationOptions options(const GenerateOptions& given) const;

 private:
  std::unique_ptr<KVBuffer> take_buffer(std::size_t rows, std::size_t tokens) const;
  void keep_buffer(std::unique_ptr<KVBuffer> buffer) const;
  std::size_t budget(std::size_t longest_row, const std::optional<std::int64_t>& asked,
                     const GenerationOptions& options) const;
  // What is prefilled for a row: its ids, after virtual tokens that are not frozen.
  Ids fed(const Ids& ids) const;

  KVLayout layout_;
  std::optional<PromptInputs> prompt_inputs_;
  Ids virtual_ids_;
  // The last request's buffer, taken out while it is used: two threads never share one.
  mutable std::mutex spare_mutex_;
  mutable std::unique_ptr<KVBuffer> spare_;
};

}  // namespace ptdeploy::detail
