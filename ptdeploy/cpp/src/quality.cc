#include "quality.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "measure.hpp"
#include "numbers.hpp"

namespace ptdeploy::detail {
namespace {

// How surprising next tokens were, over all texts.
class Perplexity {
 public:
  void add(float nll) {
    total_ += nll;
    ++count_;
  }
  double value() const {
    if (count_ == 0) return 1;
    // Bounded so that a hopeless engine gives a number, not an overflow.
    return std::exp(std::min(total_ / static_cast<double>(count_), 700.0));
  }

 private:
  double total_ = 0;
  std::size_t count_ = 0;
};

// The share of the reference's variance over texts that the engine gives too, of the output where
// it is least: explained() of ptdeploy/parity/quality.py.
class Explained {
 public:
  Explained(std::size_t columns, Head head) : columns_(columns), head_(head), off_(columns) {}
  void add(const float* want, const float* got) {
    for (std::size_t i = 0; i < columns_; ++i) {
      want_.push_back(value(want[i]));
      const double apart = want_.back() - value(got[i]);
      off_[i] += apart * apart;
    }
  }
  // The output, and its share.
  std::pair<std::size_t, double> least() const {
    std::pair<std::size_t, double> found{0, 2};
    for (std::size_t i = 0; i < columns_; ++i) {
      const double own = share(i);
      if (own < found.second) found = {i, own};
    }
    return found;
  }

 private:
  double value(float logit) const {
    return head_ == Head::sigmoid ? 1 / (1 + std::exp(-static_cast<double>(logit))) : logit;
  }

  double share(std::size_t output) const {
    if (off_[output] == 0) return 1;
    const auto texts = static_cast<double>(want_.size() / columns_);
    double mean = 0, size = 0, around = 0;
    for (std::size_t at = output; at < want_.size(); at += columns_) {
      mean += want_[at] / texts;
      size += want_[at] * want_[at] / texts;
    }
    for (std::size_t at = output; at < want_.size(); at += columns_)
      around += (want_[at] - mean) * (want_[at] - mean) / texts;
    const double least = head_ == Head::sigmoid ? kLeastChance : kLeastShare * std::sqrt(size);
    const double found = 1 - off_[output] / texts / std::max(around, least * least);
    // What is not finite explains nothing.
    return found > 0 ? found : 0;
  }

  static constexpr double kLeastChance = 0.05, kLeastShare = 0.02;
  std::size_t columns_;
  Head head_;
  std::vector<double> want_, off_;
};

// Logits of all positions, less each position's mean over the classes; a single score keeps it.
class Scores {
 public:
  explicit Scores(std::size_t columns) : columns_(columns) {}

  void add(const float* row) {
    double mean = 0;
    if (columns_ > 1) {
      for (std::size_t i = 0; i < columns_; ++i) mean += row[i];
      mean /= static_cast<double>(columns_);
    }
    for (std::size_t i = 0; i < columns_; ++i) values_.push_back(row[i] - mean);
  }

  void subtract(const Scores& other) {
    for (std::size_t i = 0; i < values_.size(); ++i) values_[i] -= other.values_[i];
  }

  double size() const { return root_mean_square(std::vector<double>(columns_, 0)); }

  // Which positions' likeliest class leads by more than a logits error of `most` may close: clear()
  // of ptdeploy/parity/quality.py.
  std::vector<bool> clear(double most) const {
    const std::size_t positions = values_.size() / columns_;
    if (columns_ < 2) return std::vector<bool>(positions, true);
    const double bound = most * size();
    std::vector<bool> out(positions);
    for (std::size_t at = 0; at < positions; ++at) {
      std::vector<double> row(values_.begin() + static_cast<std::ptrdiff_t>(at * columns_),
                              values_.begin() + static_cast<std::ptrdiff_t>((at + 1) * columns_));
      std::partial_sort(row.begin(), row.begin() + 2, row.end(), std::greater<>());
      out[at] = row[0] - row[1] > bound;
    }
    return out;
  }

  // From position to position.
  double variation() const {
    std::vector<double> mean(columns_, 0);
    for (std::size_t i = 0; i < values_.size(); ++i) mean[i % columns_] += values_[i];
    for (double& one : mean) one /= static_cast<double>(values_.size() / columns_);
    return root_mean_square(mean);
  }

 private:
  double root_mean_square(const std::vector<double>& from) const {
    double total = 0;
    for (std::size_t i = 0; i < values_.size(); ++i)
      total += (values_[i] - from[i % columns_]) * (values_[i] - from[i % columns_]);
    return std::sqrt(total / static_cast<double>(values_.size()));
  }

  std::size_t columns_;
  std::vector<double> values_;
};

// The root mean square difference of two numbers; nothing where one is not finite.
class Difference {
 public:
  void add(float want, float got) {
    const double apart = static_cast<double>(want) - static_cast<double>(got);
    total_ += apart * apart;
    ++count_;
  }
  std::optional<double> result() const {
    if (count_ == 0) return 0.0;
    const double found = std::sqrt(total_ / static_cast<double>(count_));
    return std::isfinite(found) ? std::optional<double>(found) : std::nullopt;
  }

 private:
  double total_ = 0;
  std::size_t count_ = 0;
};

// How surprising next tokens are to the engine and to the reference.
struct Surprise {
  Perplexity ours, theirs;
  Difference difference;

  void add(const EvaluationText& text, const Logits& logits) {
    for (std::size_t at = 0; at < text.nll.size(); ++at) {
      const auto next = static_cast<std::size_t>(text.ids[at + 1]);
      const auto nll = static_cast<float>(log_sum_exp(logits.row(at), logits.columns) -
                                          static_cast<double>(logits.row(at)[next]));
      ours.add(nll);
      theirs.add(text.nll[at]);
      difference.add(text.nll[at], nll);
    }
  }
};

// logits_error() of ptdeploy/parity/quality.py.
double logits_error(const Scores& want, Scores difference) {
  constexpr double kLeastVariation = 0.2, kHopeless = 1e30;
  difference.subtract(want);
  const double size = want.size(), apart = difference.size();
  if (apart == 0) return 0;
  if (!(size > 0) || !std::isfinite(apart)) return kHopeless;
  return std::max(apart / size,
                  difference.variation() / std::max(want.variation(), kLeastVariation * size));
}

// The binomial distribution's cumulative probability.
double at_most(std::int64_t count, std::int64_t of, double probability) {
  const double yes = std::log(probability), no = std::log1p(-probability);
  const auto n = static_cast<double>(of);
  double total = 0;
  for (std::int64_t step = 0; step <= count; ++step) {
    const auto i = static_cast<double>(step);
    total += std::exp(std::lgamma(n + 1) - std::lgamma(i + 1) - std::lgamma(n - i + 1) + i * yes +
                      (n - i) * no);
  }
  return total;
}

// detectable() of ptdeploy/parity/quality.py.
std::optional<double> detectable(std::size_t positions, double min_agreement) {
  constexpr double kMissed = 0.05;
  if (positions == 0) return std::nullopt;
  const auto count = static_cast<std::int64_t>(positions);
  const auto n = static_cast<double>(count);
  // A manifest is not trusted: its bound may be any number.
  min_agreement = std::min(std::max(min_agreement, 0.0), 1.0);
  std::int64_t allowed =
      std::min(static_cast<std::int64_t>((1 - min_agreement) * n) + 1, count);
  while (allowed >= 0 && !(static_cast<double>(count - allowed) / n >= min_agreement)) --allowed;
  if (allowed >= count) return std::nullopt;
  double low = 0, high = 1;
  for (int step = 0; step < 50; ++step) {
    const double middle = (low + high) / 2;
    (at_most(allowed, count, middle) > kMissed ? low : high) = middle;
  }
  return high;
}

// Agreement is of the clear answers alone.
void add_clear(ParityQuality& quality, const std::vector<bool>& changed,
               const std::vector<bool>& clear, double min_agreement) {
  std::size_t count = 0, missed = 0, ties = 0;
  for (std::size_t at = 0; at < changed.size(); ++at) {
    count += clear[at];
    missed += clear[at] && changed[at];
    ties += !clear[at] && changed[at];
  }
  quality.top1_agreement =
      count ? 1 - static_cast<double>(missed) / static_cast<double>(count) : 1;
  quality.detectable = detectable(count, min_agreement);
  quality.clear = count;
  quality.near_ties = ties;
}

// What a quantized engine is held to, of what was measured.
std::string asked_of(const ParityQuality& quality, const Quantization& allowed) {
  std::string asked =
      "asked for: at least " + formatted(100 * allowed.min_agreement, 2, 'f') + "% agreement";
  if (quality.logits_error && allowed.max_logits_error)
    asked += ", at most " + formatted(*allowed.max_logits_error, 6, 'g') + " logits error";
  if (quality.perplexity_ratio)
    asked +=
        ", at most " + formatted(allowed.max_perplexity_ratio, 6, 'g') + " times the perplexity";
  return asked;
}

}  // namespace

std::optional<ParityQuality> evaluate(Reference& reference, const TaskKind& kind, Head head,
                                      const Quantization& allowed, const RunRows& run) {
  if (reference.metadata().evaluation == 0) return std::nullopt;
  ParityQuality quality;
  quality.evaluated_on = reference.metadata().evaluated_on;
  quality.texts = reference.metadata().evaluation;
  Surprise surprise;
  std::vector<bool> changed;
  const bool chooses = head == Head::softmax, writes = kind.writes;
  const std::size_t columns = reference.columns();
  const bool classifies = chooses && !writes;
  Explained explained(columns, head);
  Scores wanted(columns), given(columns);
  bool whole = true, compared = true;
  Difference difference;
  std::vector<Difference> of_outputs(columns);
  std::map<std::int64_t, std::size_t> found;
  for (std::size_t i = 0; i < quality.texts; ++i) {
    const EvaluationText text = reference.evaluation(i);
    const std::vector<Ids> types(text.type_ids.empty() ? 0 : 1, text.type_ids);
    const Logits logits = run({text.ids}, types)[0];
    quality.positions += text.top1.size();
    for (std::size_t at = 0; at < text.top1.size(); ++at)
      changed.push_back(static_cast<std::int64_t>(argmax(logits.row(at), logits.columns)) !=
                        text.top1[at]);
    surprise.add(text, logits);
    if (!chooses) explained.add(text.logits.data(), logits.row(0));
    compared = compared && !writes && !text.logits.empty();
    for (std::size_t at = 0; compared && at < text.logits.size(); ++at) {
      difference.add(text.logits[at], logits.values[at]);
      of_outputs[at % columns].add(text.logits[at], logits.values[at]);
    }
    if (!classifies) continue;
    for (std::int64_t id : text.top1) ++found[id];
    whole = whole && !text.logits.empty();
    for (std::size_t at = 0; whole && at < text.top1.size(); ++at) {
      wanted.add(text.logits.data() + at * columns);
      given.add(logits.row(at));
    }
  }
  const auto agreed = std::count(changed.begin(), changed.end(), false);
  quality.top1_agreement =
      chooses ? static_cast<double>(agreed) / static_cast<double>(quality.positions)
              : explained.least().second;
  if (!chooses) {
    quality.measured = "explained variance of the values";
    if (columns > 1)
      quality.measured += " of output " + std::to_string(explained.least().first);
  }
  if (writes) quality.perplexity_ratio = surprise.ours.value() / surprise.theirs.value();
  if (classifies) {
    std::size_t commonest = 0;
    for (const auto& one : found) commonest = std::max(commonest, one.second);
    quality.largest_share =
        static_cast<double>(commonest) / static_cast<double>(quality.positions);
  }
  if (chooses) quality.detectable = detectable(quality.positions, allowed.min_agreement);
  if (writes || compared)
    quality.rms_error = (writes ? surprise.difference : difference).result();
  if (!chooses && columns > 1)
    for (const Difference& one : of_outputs) quality.rms_outputs.push_back(one.result());
  if (classifies && whole) {
    add_clear(quality, changed, wanted.clear(allowed.max_logits_error.value_or(0)),
              allowed.min_agreement);
    quality.logits_error = logits_error(wanted, std::move(given));
  }
  quality.asked_for = asked_of(quality, allowed);
  return quality;
}

std::vector<std::string> quality_notes(const ParityQuality& quality) {
  constexpr double kCoarse = 0.15, kOneClass = 0.9;
  const auto percent = [](double share) { return formatted(100 * share, 0, 'f') + "%"; };
  std::vector<std::string> notes;
  if (quality.measured != ParityQuality().measured) return notes;
  if (!quality.detectable || *quality.detectable > kCoarse)
    notes.push_back("agreement at " + std::to_string(quality.clear.value_or(quality.positions)) +
                    " positions is a coarse measure: a fault that changes " +
                    (quality.detectable ? percent(*quality.detectable) : "any number") +
                    " of the answers could pass it.");
  if (quality.largest_share && *quality.largest_share >= kOneClass)
    notes.push_back("the reference finds one class in " + percent(*quality.largest_share) + " of " +
                    quality.evaluated_on + ": agreement says little" +
                    (quality.logits_error ? ", the logits error decides." : "."));
  return notes;
}

}  // namespace ptdeploy::detail
