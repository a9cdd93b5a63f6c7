// One of a bundle's prompts, or batches of several, against stored references.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "effect.hpp"
#include "engine_state.hpp"
#include "own.hpp"
#include "reference.hpp"

namespace ptdeploy::detail {

// What cases are held by, as in ptdeploy/parity/bounds.py; `allowed` is the largest difference of a
// logit. `own` is what a quantized engine may be off its own rows alone by; it is known once the prompt
// was compared. `outputs` is what each output of a head that chooses no one class may be off by,
// `own_outputs` from the engine's own rows; empty for others, and of one.
struct Bounds {
  Thresholds thresholds;
  double allowed = 0;
  // A position's logits that are shorter, as a vector, have no direction to keep.
  double short_norm = 0;
  std::optional<double> own;
  std::vector<double> outputs, own_outputs;

  // Which logits lie so near that either is as right: each may be off by what is allowed.
  double tie() const { return 2 * allowed; }
  // How far below the likeliest of the engine's own prefill a chosen token may lie. A quantized
  // engine is held to itself. Of another, prefill and decode steps may each be off the reference,
  // so that they are as far apart as what is a near tie.
  double decode() const { return own.value_or(tie()); }
};

// The engine's logits of rows; where it fails on rows that it must take they are NaN, and `stopped`
// says why.
std::vector<Logits> logits_of(const EngineState& state, const std::vector<ReferenceRow>& rows,
                              const Chosen& chosen, std::string& stopped);

// Holds logits against rows of a reference.
ParityCase measured(const std::string& name, const std::vector<ReferenceRow>& wanted,
                    const std::vector<Logits>& got, const Bounds& bounds);

// Continues rows in one batch by `steps` tokens, and holds each against what the reference gives.
// `bounds` are each row's: what its logits may be off by, so that a near tie may go either way.
std::vector<ParityGreedy> continued(const EngineState& state,
                                    const std::vector<ReferenceGreedy>& wanted, std::size_t steps,
                                    const std::vector<Bounds>& bounds, const Chosen& chosen);

// One prompt against its own reference; a null prompt is the base model alone.
class PromptVerifier {
 public:
  // Throws BundleError, as all that reads does, if the file is no reference or does not fit the engine
  // with this prompt, FileFault if it cannot be opened.
  PromptVerifier(const EngineState& state, RowPrompt prompt, const FileEntry& file);

  const Bounds& bounds() const { return bounds_; }
  // A row of the reference, the last one where there are not as many.
  ReferenceRow row(std::size_t place);
  // The rows that are continued furthest; none where none are stored, or the task writes nothing.
  std::vector<ReferenceGreedy> furthest();
  // What came of the prompt's own cases, without failures and a verdict.
  ParityReport compared();

 private:
  PromptVerifier(const EngineState& state, RowPrompt prompt, const std::string& file,
                 const std::string& opened);
  void read_rows();
  ParityCase compare(const BatchCase& one);
  const std::vector<OwnRow>& alone(const BatchCase& one);
  std::vector<ParityGreedy> compare_greedy();
  std::vector<std::string> notes(const ParityReport& report) const;

  const EngineState& state_;
  RowPrompt prompt_;
  PromptInfo info_;
  Reference reference_;
  Bounds bounds_;
  // The rows' largest logit, and the tokens of the longest of them.
  double largest_logit_ = 0;
  std::size_t longest_ = 0;
  // What the engine gives for the rows of the last batch alone: another with the same rows follows,
  // padded on the other side.
  std::vector<std::size_t> last_;
  std::vector<OwnRow> own_;
  // Each output's largest value, and how far outputs of each case are from the engine's own.
  std::vector<double> scales_;
  std::vector<std::vector<double>> apart_;
  Projection effect_;
};

}  // namespace ptdeploy::detail
