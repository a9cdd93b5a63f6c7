// Logits against logits: the numbers of a case, position by position.
#pragma once

#include <cstddef>
#include <optional>

namespace ptdeploy::detail {

// Nothing where a number is not finite.
struct Measured {
  std::optional<double> max_abs, mean_abs, cosine, kl;
  double top1_agreement = 0;
  // Whether the argmax agrees wherever the reference's own margin is larger than twice what is
  // allowed.
  bool clear_agreement = true;
};

// What a case may cost, as the reference stores it: a difference may reach `max_abs` + `relative`
// times the largest reference logit.
struct Thresholds {
  double max_abs = 0, relative = 0, cosine = 0, kl = 0, min_top1_agreement = 0;

  double allowed(double scale) const { return max_abs + relative * scale; }
};

// Whether a case's numbers are within the thresholds; what is not finite never is.
bool within(const Measured& found, const Thresholds& thresholds, double allowed);

class Measure {
 public:
  // Scores that are short beside `short_norm` point nowhere: their cosine is that of both lengthened
  // by so much in one more direction.
  Measure(double allowed, double short_norm) : allowed_(allowed), short_(short_norm) {}
  // One position's scores.
  void add(const float* want, const float* got, std::size_t columns);
  Measured result() const;

 private:
  double allowed_, short_;
  double largest_ = 0, total_ = 0, cosine_ = 2, kl_ = 0;
  bool finite_ = true, cosine_finite_ = true, kl_finite_ = true, clear_ = true;
  std::size_t positions_ = 0, agreed_ = 0, numbers_ = 0;
};

// The first of the largest; NaN counts as larger than all, as in NumPy.
std::size_t argmax(const float* values, std::size_t count);

// ln of the sum of exp.
double log_sum_exp(const float* values, std::size_t count);

}  // namespace ptdeploy::detail
