// What the tasks have in common that give labels: one run, no KV buffer.
#pragma once

#include <functional>

#include "engine_state.hpp"
#include "prompt_inputs.hpp"

namespace ptdeploy::detail {

class Labelling : public TaskEngine {
 public:
  explicit Labelling(const EngineState& state);

  std::size_t columns(const PromptInfo& prompt) const override { return prompt.labels.size(); }
  std::vector<Logits> logits(const std::vector<Ids>& rows, const Chosen& chosen,
                             const std::vector<Ids>& segments) const override;
  void forget(const RowPrompt& prompt) const override { inputs_.forget(prompt); }

 protected:
  // Given a row, its prompt and its logits: (labels,), or (tokens, labels) where each token has its
  // own.
  using Take =
      std::function<void(const Ids& row, const PromptInfo& prompt, const float* logits)>;
  // Checks a request, and runs its rows in batches of `batch_size`, or of as many as the engine
  // takes, of about one length each. Answers are taken in the rows' order.
  void run(const std::vector<Ids>& rows, const Chosen& chosen, std::size_t batch_size,
           const std::vector<Ids>& segments, const Take& take) const;

 private:
  // Rows of one run and what belongs to each; segments are none, or each row's.
  struct Part {
    std::vector<Ids> rows, segments;
    std::vector<RowPrompt> prompts;
  };
  // The logits of each row, cut to its own text and to the labels of its own prompt.
  using Answers = std::vector<std::vector<float>>;

  // The size of a batch, or of the largest that the engine takes.
  std::size_t fitting(std::size_t size) const;
  // Runs rows as one batch, or as many at a time as one run of the engine takes.
  Answers answers(const Part& part) const;
  Answers run_rows(const Part& part) const;

  PromptInputs inputs_;
};

// Throws Problem naming what in a manifest no classifier has, of tokens or of whole texts.
void require_classifier(const Manifest& manifest, bool per_token);

// Probabilities of `count` logits. Throw EngineFault unless all are finite: no class is likeliest.
std::vector<double> softmax(const float* logits, std::size_t count);
std::vector<double> sigmoid(const float* logits, std::size_t count);
std::size_t likeliest(const std::vector<double>& probabilities);

}  // namespace ptdeploy::detail
