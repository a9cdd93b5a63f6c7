// A bundle's stored reference: what PEFT on PyTorch gave for each row alone. docs/bundle.md has
// its tensors.
//
// The file is not trusted. Every size is held against the bundle's own limits before anything of
// that size is read, and rows stay in the file, so that many of them need no more memory than one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine_state.hpp"
#include "safetensors.hpp"

namespace ptdeploy::detail {

enum class Source { random, text, data };

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

// A text that rounded weights are judged on: the likeliest token or class at each position, and how
// surprising each next token was, in nats (CAUSAL_LM). For classifiers that are judged by them the
// logits too, (positions, classes).
struct ReferenceText {
  Ids ids, type_ids, top1;
  std::vector<float> nll, logits;
};

class Reference {
 public:
  // Throws BundleError, as all that reads does, if it is no reference or does not fit the engine.
  Reference(const std::string& file, const EngineState& engine);

  const std::string& made_by() const { return made_by_; }
  const std::string& judged_on() const { return judged_on_; }
  const std::optional<double>& padded_departure() const { return padded_departure_; }
  // Texts, and pairs of them, with the token ids that the tokenizer must give.
  std::size_t texts() const { return texts_; }
  // One for each row.
  const std::vector<Source>& sources() const { return sources_; }
  std::size_t greedy_rows() const { return greedy_; }
  std::size_t judged_rows() const { return judged_; }

  ReferenceRow row(std::size_t index);
  ReferenceGreedy greedy(std::size_t index);
  ReferenceText judged(std::size_t index);

 private:
  void read_metadata();
  Ids ids(const std::string& name);
  Ids segments(const std::string& name, std::size_t tokens);
  std::size_t length(const std::string& name, const std::string& dtype) const;
  void require_length(const std::string& name, const std::string& dtype, std::size_t wanted) const;
  template <class Body>
  auto checked(Body body) const;

  std::string file_;
  const EngineState& engine_;
  std::optional<Safetensors> tensors_;
  std::string made_by_, judged_on_;
  std::optional<double> padded_departure_;
  std::size_t texts_ = 0, greedy_ = 0, judged_ = 0;
  std::vector<Source> sources_;
};

}  // namespace ptdeploy::detail
