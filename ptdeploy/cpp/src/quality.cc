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

}  // namespace

std::optional<ParityQuality> judge(Reference& reference, Task task, const RunRows& run) {
  if (reference.judged_rows() == 0) return std::nullopt;
  ParityQuality quality;
  quality.judged_on = reference.judged_on();
  quality.texts = reference.judged_rows();
  Perplexity ours, theirs;
  std::size_t agreed = 0;
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
  }
  quality.top1_agreement = static_cast<double>(agreed) / static_cast<double>(quality.positions);
  if (task == Task::causal_lm) quality.perplexity_ratio = ours.value() / theirs.value();
  return quality;
}

}  // namespace ptdeploy::detail
