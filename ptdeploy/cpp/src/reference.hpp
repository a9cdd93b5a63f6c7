// A prompt's stored reference: what PEFT on PyTorch gave for each row alone. docs/bundle.md has
// its tensors.
//
// The file is not trusted. Every size is held against the bundle's own limits before anything of
// that size is read, and rows stay in the file, so that many of them need no more memory than one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine_state.hpp"
#include "reference_metadata.hpp"
#include "safetensors.hpp"

namespace ptdeploy::detail {

// A row's token ids, the segment of each (none: all 0), and its logits at its last positions;
// (1, classes) for SEQ_CLS.
struct ReferenceRow {
  Ids ids, type_ids;
  Logits logits;
};

// A row's greedy continuation, and by how much each token's score beat the second one's.
struct ReferenceGreedy {
  Ids ids, tokens;
  std::vector<float> margins;
};

// A text that quantized weights are evaluated on: the likeliest token or class at each position,
// and how surprising each next token was, in nats (CAUSAL_LM). For classifiers that are evaluated by
// them the logits too, (positions, classes).
struct EvaluationText {
  Ids ids, type_ids, top1;
  std::vector<float> nll, logits;
};

class Reference {
 public:
  // Reads `opened`, which errors call `file`. Throws BundleError, as all that reads does, if it is no
  // reference or does not fit the engine with this prompt.
  Reference(const std::string& file, const std::string& opened, const EngineState& engine,
            const PromptInfo& prompt);

  const ReferenceMetadata& metadata() const { return metadata_; }
  // Of logits.
  std::size_t columns() const { return columns_; }
  // What the engine was proven with.
  const std::vector<BatchCase>& cases() const { return cases_; }

  ReferenceRow row(std::size_t index);
  // The same model's logits of a row without the prompt; of no rows where none are stored.
  Logits without_prompt(std::size_t index);
  ReferenceGreedy greedy(std::size_t index);
  // How the same model continues a row without the prompt; nothing where that is not stored.
  std::optional<ReferenceGreedy> base_greedy();
  EvaluationText evaluation(std::size_t index);

 private:
  void read_metadata();
  ReferenceGreedy continued(const std::string& place);
  Ids ids(const std::string& name);
  std::vector<float> logits(const std::string& name, const std::vector<std::int64_t>& wanted);
  Ids segments(const std::string& name, std::size_t tokens);
  std::size_t length(const std::string& name, const std::string& dtype) const;
  void require_length(const std::string& name, const std::string& dtype, std::size_t wanted) const;
  template <class Body>
  auto checked(Body body) const;

  std::string file_;
  const EngineState& engine_;
  Head head_;
  std::size_t columns_;
  std::int64_t max_sequence_;
  std::optional<Safetensors> tensors_;
  ReferenceMetadata metadata_;
  std::vector<BatchCase> cases_;
};

}  // namespace ptdeploy::detail
