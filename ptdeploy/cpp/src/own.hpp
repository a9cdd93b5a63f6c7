// An engine held to itself: batches and decode steps against its own rows alone.
//
// How far quantization may take a row from the reference, the evaluation text says. What the row is
// put beside, and in how many steps it is computed, must not matter. Of other precisions decode
// steps are held to the engine's own prefill, too.
#pragma once

#include <string>
#include <vector>

#include "engine_state.hpp"
#include "reference.hpp"

namespace ptdeploy::detail {

// What the engine gives for a row alone, at the positions that the reference has: NaN where it fails
// on the row, and `stopped` says why.
struct OwnRow {
  Logits logits;
  std::string stopped;
};

OwnRow row_alone(const EngineState& state, const ReferenceRow& row, const RowPrompt& prompt);

// What a logit may be off the engine's own row alone, as in ptdeploy/parity/own.py. `scale` is the
// reference's largest logit.
double own_bound(const std::optional<ParityQuality>& quality, double scale);

// The same of each output; none where one bound is that of all. `scales` are each one's.
std::vector<double> own_outputs(const std::optional<ParityQuality>& quality,
                                const std::vector<double>& scales);

// The output that is furthest over its own bound; nothing where all are within theirs.
std::optional<ParityOutput> furthest(const std::vector<double>& apart,
                                     const std::vector<double>& allowed);

// Adds how far each output of a row is at most from that of other logits of it, at the positions that
// those have; what is not finite is infinitely far.
void add_apart(std::vector<double>& largest, const Logits& got, const Logits& other);

// Adds how far a case's rows are from what the engine gives for each alone; gives that of each
// output.
std::vector<double> add_own(ParityCase& one, const std::vector<Logits>& got,
                            const std::vector<OwnRow>& own);

// Fails a case of rows beside others that are further than `allowed` from the engine's own alone,
// or where an output is further `apart` than `outputs` says, unless that is empty.
void hold_to_own(ParityCase& one, double allowed, const std::vector<double>& outputs,
                 const std::vector<double>& apart);

// Adds what the engine, given `text` and the tokens of `row` alone and at once, finds of the row: how
// far the log probabilities of its steps are off at most and, where not all tokens agree, by how much
// one lies below the likeliest. Fails the row where that is over `allowed`.
void hold_to_own(ParityGreedy& one, const EngineState& state, const Ids& text, const Generated& row,
                 double allowed, const RowPrompt& prompt);

}  // namespace ptdeploy::detail
