// CAUSAL_LM: generation over a KV buffer in which each row's first slots are its prompt's prefix KV.
#pragma once

#include "engine_state.hpp"
#include "kv_buffers.hpp"

namespace ptdeploy::detail {

class CausalEngine : public TaskEngine {
 public:
  // Throws TargetUnavailable if the backend keeps no such KV.
  explicit CausalEngine(const EngineState& state);

  std::size_t columns(const PromptInfo&) const override { return layout_.vocabulary; }
  std::vector<Logits> logits(const std::vector<Ids>& rows, const Chosen& chosen,
                             const std::vector<Ids>& segments) const override;
  void forget(const RowPrompt& prompt) const override;
  std::vector<Generated> generate(const std::vector<Ids>& rows, const Chosen& chosen,
                                  const GenerateOptions& given,
                                  const OnToken& on_token) const override;
  std::unique_ptr<SessionState> session(std::shared_ptr<const EngineState> owner,
                                        const Chosen& chosen,
                                        std::size_t max_tokens) const override;

  const KVLayout& layout() const { return layout_; }
  const KVBuffers& buffers() const { return buffers_; }
  // The model's defaults with what a request changes. Throws InputError on a bad value.
  GenerationOptions options(const GenerateOptions& given) const;

 private:
  // How many tokens each row may be continued with. Throws InputError if more are asked for.
  std::vector<std::size_t> budgets(const std::vector<Ids>& rows,
                                   const std::vector<RowPrompt>& prompts,
                                   const GenerateOptions& given,
                                   const GenerationOptions& options) const;

  KVLayout layout_;
  PromptInputs inputs_;
  KVBuffers buffers_;
};

}  // namespace ptdeploy::detail
