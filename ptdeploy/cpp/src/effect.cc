#include "effect.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "numbers.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

constexpr double kMostMissing = 0.5;
constexpr double kStandardErrors = 8;
constexpr std::size_t kLeastPositions = 8;

// A position's logits less their mean; a single score keeps it.
std::vector<double> shifted_scores(const float* row, std::size_t columns) {
  std::vector<double> out(row, row + columns);
  if (columns < 2) return out;
  const double mean = std::accumulate(out.begin(), out.end(), 0.0) / static_cast<double>(columns);
  for (double& one : out) one -= mean;
  return out;
}

std::string apart_words(const ParityEffect& one) {
  if (one.other.empty()) return "what the prompt changes in the logits";
  return std::string("what sets ") +
         (one.without_prompt ? "logits without a prompt" : "the prompt's logits") +
         " apart from those of " + quoted(one.other);
}

}  // namespace

void Projection::add(const Logits& want, const Logits& got, const Logits& other) {
  add(want, got, other, other);
}

void Projection::add(const Logits& want, const Logits& got, const Logits& other,
                     const Logits& got_other) {
  const std::size_t count = std::min({want.rows, got.rows, other.rows, got_other.rows});
  for (std::size_t at = 0; at < count; ++at) {
    const auto last = [&](const Logits& from) {
      return shifted_scores(from.row(from.rows - count + at), want.columns);
    };
    const std::vector<double> wanted = last(want), given = last(got), others = last(other),
                              given_others = last(got_other);
    double along = 0, size = 0;
    for (std::size_t i = 0; i < want.columns; ++i) {
      const double effect = wanted[i] - others[i];
      along -= (given[i] - given_others[i] - effect) * effect;
      size += effect * effect;
    }
    along_.push_back(along);
    effect_.push_back(size);
  }
}

std::optional<ParityEffect> Projection::result(const std::string& other) const {
  if (along_.empty()) return std::nullopt;
  ParityEffect out;
  out.other = other;
  out.positions = along_.size();
  const double total = std::accumulate(effect_.begin(), effect_.end(), 0.0);
  if (!(total > 0) || out.positions < 2) return out;
  const double missing = std::accumulate(along_.begin(), along_.end(), 0.0) / total;
  double off = 0;
  for (std::size_t i = 0; i < along_.size(); ++i) {
    const double apart = along_[i] - missing * effect_[i];
    off += apart * apart;
  }
  const auto count = static_cast<double>(out.positions);
  const double error = std::sqrt(off * count / (count - 1)) / total;
  if (std::isfinite(missing)) out.missing = missing;
  if (std::isfinite(error)) out.error = error;
  out.told = out.missing && out.error && out.positions >= kLeastPositions &&
             kStandardErrors * error <= kMostMissing;
  out.passed = !out.told || missing <= kMostMissing;
  return out;
}

std::string effect_failure(const ParityEffect& one) {
  if (one.passed) return "";
  return formatted(100 * *one.missing, 1, 'f') + "% of " + apart_words(one) +
         " is missing, but at most " + formatted(100 * kMostMissing, 0, 'f') + "% may be";
}

std::string effect_note(const ParityEffect& one) {
  if (one.told) return "";
  const std::string known = "the prompt changes too little to tell whether the engine has ";
  if (one.other.empty()) return known + "it.";
  if (one.without_prompt) return known + quoted(one.other) + " where no prompt is asked for.";
  return known + "it or " + quoted(one.other) + " in its place.";
}

}  // namespace ptdeploy::detail
