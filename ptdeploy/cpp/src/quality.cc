#include "quality.hpp"

#include <algorithm>
#include <cmath>

#include "measure.hpp"

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

// The share of the reference's variance over texts that the engine gives too, from 0 to 1.
class Explained {
 public:
  Explained(std::size_t columns, Head head) : columns_(columns), head_(head) {}
  void add(const float* want, const float* got) {
    for (std::size_t i = 0; i < columns_; ++i) {
      want_.push_back(value(want[i]));
      const double apart = want_.back() - value(got[i]);
      off_ += apart * apart;
    }
  }
  double share() const {
    if (!(off_ > 0)) return off_ == 0 ? 1 : 0;
    const std::size_t texts = want_.size() / columns_;
    double around = 0;
    for (std::size_t i = 0; i < columns_; ++i) {
      double mean = 0;
      for (std::size_t at = 0; at < texts; ++at) mean += want_[at * columns_ + i];
      mean /= static_cast<double>(texts);
      for (std::size_t at = 0; at < texts; ++at) {
        const double apart = want_[at * columns_ + i] - mean;
        around += apart * apart;
      }
    }
    return around > 0 ? std::max(0.0, 1 - off_ / around) : 0;
  }

 private:
  double value(float logit) const {
    return head_ == Head::sigmoid ? 1 / (1 + std::exp(-static_cast<double>(logit))) : logit;
  }

  std::size_t columns_;
  Head head_;
  std::vector<double> want_;
  double off_ = 0;
};

}  // namespace

std::optional<ParityQuality> judge(Reference& reference, const BundleInfo& info,
                                   const RunRows& run) {
  if (reference.judged_rows() == 0) return std::nullopt;
  ParityQuality quality;
  quality.judged_on = reference.judged_on();
  quality.texts = reference.judged_rows();
  Perplexity ours, theirs;
  std::size_t agreed = 0;
  const bool chooses = info.head == Head::softmax;
  Explained explained(info.columns, info.head);
  for (std::size_t i = 0; i < quality.texts; ++i) {
    const ReferenceText text = reference.judged(i);
    const std::vector<Ids> types(text.type_ids.empty() ? 0 : 1, text.type_ids);
    const Logits logits = run({text.ids}, types)[0];
    quality.positions += text.top1.size();
    for (std::size_t at = 0; at < text.top1.size(); ++at)
      agreed += static_cast<std::int64_t>(argmax(logits.row(at), logits.columns)) == text.top1[at];
    for (std::size_t at = 0; at < text.nll.size(); ++at) {
      const auto next = static_cast<std::size_t>(text.ids[at + 1]);
      const double nll = log_sum_exp(logits.row(at), logits.columns) - logits.row(at)[next];
      ours.add(static_cast<float>(nll));
      theirs.add(text.nll[at]);
    }
    if (!chooses) explained.add(text.values.data(), logits.row(0));
  }
  quality.top1_agreement =
      chooses ? static_cast<double>(agreed) / static_cast<double>(quality.positions)
              : explained.share();
  if (!chooses) quality.measured = "explained variance of the values";
  if (info.task == Task::causal_lm) quality.perplexity_ratio = ours.value() / theirs.value();
  return quality;
}

}  // namespace ptdeploy::detail
