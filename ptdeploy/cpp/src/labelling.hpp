// What the tasks have in common that give labels: one run, no KV buffer.
#pragma once

#include <functional>

#include "engine_state.hpp"
#include "prompts.hpp"

namespace ptdeploy::detail {

class Labelling : public TaskEngine {
 public:
  // Throws BundleError if the prompt's file is not what the manifest says.
  explicit Labelling(const EngineState& state);

  std::size_t columns() const override { return prompt_.info.labels.size(); }
  std::vector<Logits> logits(const std::vector<Ids>& rows,
                             const std::vector<Ids>& segments) const override;

 protected:
  // Given a row, and its logits: (classes,), or (tokens, classes) where each token has its own.
  using Take = std::function<void(const Ids& row, const float* logits)>;
  // Checks a request, and runs its rows in batches of `batch_size`, or of as many as the engine
  // takes, of about one length each. Answers are taken in the rows' order.
  void run(const std::vector<Ids>& rows, std::size_t batch_size, const std::vector<Ids>& segments,
           const Take& take) const;

 private:
  // The size of a batch, or of the largest that the engine takes.
  std::size_t fitting(std::size_t size) const;
  void in_batches(const std::vector<Ids>& rows, const std::vector<Ids>& segments, std::size_t size,
                  const Take& take) const;
  // Runs rows as one right-padded batch; gives (rows, classes), or (rows, width, classes) with the
  // virtual tokens' own. `segments` are null for all 0.
  std::vector<float> run_rows(const Ids* rows, std::size_t count, const Ids* segments) const;

  LoadedPrompt prompt_;
  PromptInputs prompt_inputs_;
  Ids virtual_ids_;  // before each row; empty where the prompt goes in as a prefix KV
};

// Throws Problem naming what in a manifest no classifier has whose logits have these axes, and one
// of classes behind them.
void require_classifier(const Manifest& manifest, std::vector<Axis> logits);

// Probabilities of `count` logits. Throw EngineFault unless all are finite: no class is likeliest.
std::vector<double> softmax(const float* logits, std::size_t count);
std::vector<double> sigmoid(const float* logits, std::size_t count);
std::size_t likeliest(const std::vector<double>& probabilities);

}  // namespace ptdeploy::detail
