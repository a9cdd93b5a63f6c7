#include "own.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "prompt_verifier.hpp"

namespace ptdeploy::detail {
namespace {

// What fp32 may cost, of ptdeploy/bundle/precision.py: sums in another order.
constexpr double kMaxAbs = 1e-5, kRelative = 1e-5;
// How many root mean squares of what quantization costs on text a logit may be off.
constexpr double kRootMeanSquares = 8;

bool beside_others(const ParityCase& one) { return one.mixed || one.lengths.size() > 1; }

// What a logit may be off the engine's own, by what quantizing costs and by the largest logit.
double bound_of(double error, double scale) {
  return std::max(2 * (kMaxAbs + kRelative * scale), kRootMeanSquares * error);
}

// The last `count` rows of logits.
Logits last(const Logits& from, std::size_t count) {
  const float* start = from.row(from.rows - count);
  return {count, from.columns, std::vector<float>(start, start + count * from.columns)};
}

}  // namespace

OwnRow row_alone(const EngineState& state, const ReferenceRow& row, const RowPrompt& prompt) {
  OwnRow out;
  out.logits = last(logits_of(state, {row}, {{prompt}}, out.stopped)[0], row.logits.rows);
  return out;
}

double own_bound(const std::optional<ParityQuality>& quality, double scale) {
  return bound_of(quality ? quality->rms_error.value_or(0) : 0, scale);
}

std::vector<double> own_outputs(const std::optional<ParityQuality>& quality,
                                const std::vector<double>& scales) {
  std::vector<double> out;
  if (!quality || quality->rms_outputs.size() != scales.size()) return out;
  for (std::size_t i = 0; i < scales.size(); ++i)
    out.push_back(bound_of(quality->rms_outputs[i].value_or(0), scales[i]));
  return out;
}

std::optional<ParityOutput> furthest(const std::vector<double>& apart,
                                     const std::vector<double>& allowed) {
  std::optional<ParityOutput> found;
  double most = -1;
  for (std::size_t i = 0; i < allowed.size(); ++i) {
    if (!(apart[i] > allowed[i]) || !(apart[i] / allowed[i] > most)) continue;
    most = apart[i] / allowed[i];
    found = ParityOutput{i, {}, allowed[i]};
    if (std::isfinite(apart[i])) found->max_abs = apart[i];
  }
  return found;
}

void add_apart(std::vector<double>& largest, const Logits& got, const Logits& other) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  const float* given = got.row(got.rows - other.rows);
  for (std::size_t at = 0; at < other.values.size(); ++at) {
    const double apart =
        std::abs(static_cast<double>(given[at]) - static_cast<double>(other.values[at]));
    double& most = largest[at % largest.size()];
    most = std::max(most, std::isfinite(apart) ? apart : kInfinite);
  }
}

std::vector<double> add_own(ParityCase& one, const std::vector<Logits>& got,
                            const std::vector<OwnRow>& own) {
  std::vector<double> largest(got[0].columns, 0);
  for (std::size_t i = 0; i < own.size(); ++i) {
    if (one.stopped.empty()) one.stopped = own[i].stopped;
    add_apart(largest, got[i], own[i].logits);
  }
  const double most = *std::max_element(largest.begin(), largest.end());
  if (std::isfinite(most)) one.own_max_abs = most;
  return largest;
}

void hold_to_own(ParityCase& one, double allowed, const std::vector<double>& outputs,
                 const std::vector<double>& apart) {
  if (!beside_others(one)) return;
  if (!outputs.empty()) one.own_output = furthest(apart, outputs);
  one.passed =
      one.passed && one.own_max_abs && *one.own_max_abs <= allowed && !one.own_output;
}

void hold_to_own(ParityGreedy& one, const EngineState& state, const Ids& text, const Generated& row,
                 double allowed, const RowPrompt& prompt) {
  const Ids& tokens = row.token_ids;
  ReferenceRow asked{text, {}, {}};
  asked.ids.insert(asked.ids.end(), tokens.begin(), tokens.end() - 1);
  const Logits found = logits_of(state, {asked}, {{prompt}}, one.stopped)[0];
  if (!one.stopped.empty()) {
    one.passed = false;
    return;
  }
  double behind = 0, apart = 0;
  bool finite = true, apart_finite = true;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const float* scores = found.row(found.rows - tokens.size() + i);
    const double best = scores[argmax(scores, found.columns)];
    const double below = best - static_cast<double>(scores[tokens[i]]);
    finite = finite && std::isfinite(below);
    behind = std::max(behind, below);
    const double own = scores[tokens[i]] - log_sum_exp(scores, found.columns);
    const double off = std::abs(own - row.logprobs[i]);
    apart_finite = apart_finite && std::isfinite(off);
    apart = std::max(apart, off);
  }
  if (apart_finite) one.steps_apart = apart;
  one.passed = one.passed && apart_finite && apart <= allowed;
  if (one.agreed == one.total) return;
  if (finite) one.behind = behind;
  one.passed = one.passed && finite && behind <= allowed;
}

}  // namespace ptdeploy::detail
