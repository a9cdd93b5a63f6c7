#include "measure.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ptdeploy::detail {
namespace {

double cosine(const float* want, const float* got, std::size_t count, double short_norm) {
  double product = short_norm * short_norm, left = product, right = product;
  for (std::size_t i = 0; i < count; ++i) {
    const double a = want[i], b = got[i];
    product += a * b;
    left += a * a;
    right += b * b;
  }
  // A head that gives nothing points nowhere: two of them agree.
  if (left == 0 && right == 0) return 1;
  const double norms = std::sqrt(left) * std::sqrt(right);
  return product / (norms == 0 ? 1 : norms);
}

double divergence(const float* want, const float* got, std::size_t count) {
  const double p_total = log_sum_exp(want, count), q_total = log_sum_exp(got, count);
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double p = want[i] - p_total, q = got[i] - q_total;
    sum += std::exp(p) * (p - q);
  }
  return sum;
}

// By how much the best of the scores beats the second best.
double margin(const float* values, std::size_t count) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  double best = kNone, second = kNone;
  for (std::size_t i = 0; i < count; ++i) {
    const double value = values[i];
    second = std::max(second, std::min(best, value));
    best = std::max(best, value);
  }
  return best - second;
}

}  // namespace

std::size_t argmax(const float* values, std::size_t count) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < count && !std::isnan(values[best]); ++i)
    if (std::isnan(values[i]) || values[i] > values[best]) best = i;
  return best;
}

double log_sum_exp(const float* values, std::size_t count) {
  const double top = *std::max_element(values, values + count);
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += std::exp(values[i] - top);
  return top + std::log(sum);
}

bool within(const Measured& found, const Thresholds& thresholds, double allowed) {
  return found.max_abs && *found.max_abs <= allowed && found.cosine &&
         *found.cosine >= thresholds.cosine && found.kl && *found.kl <= thresholds.kl &&
         found.top1_agreement >= thresholds.min_top1_agreement && found.clear_agreement;
}

void Measure::add(const float* want, const float* got, std::size_t columns) {
  ++positions_;
  numbers_ += columns;
  for (std::size_t i = 0; i < columns; ++i) {
    const double difference = std::abs(static_cast<double>(want[i]) - static_cast<double>(got[i]));
    finite_ = finite_ && std::isfinite(difference);
    largest_ = std::max(largest_, difference);
    total_ += difference;
  }
  const double direction = cosine(want, got, columns, short_),
               kl = divergence(want, got, columns);
  cosine_finite_ = cosine_finite_ && std::isfinite(direction);
  cosine_ = std::min(cosine_, direction);
  kl_finite_ = kl_finite_ && std::isfinite(kl);
  kl_ = positions_ == 1 ? kl : std::max(kl_, kl);
  const bool agree = argmax(want, columns) == argmax(got, columns);
  agreed_ += agree;
  if (columns > 1 && margin(want, columns) > 2 * allowed_) clear_ = clear_ && agree;
}

Measured Measure::result() const {
  Measured out;
  if (finite_) {
    out.max_abs = largest_;
    out.mean_abs = total_ / static_cast<double>(numbers_);
  }
  if (cosine_finite_) out.cosine = cosine_;
  if (kl_finite_) out.kl = kl_;
  out.top1_agreement = static_cast<double>(agreed_) / static_cast<double>(positions_);
  out.clear_agreement = clear_;
  return out;
}

}  // namespace ptdeploy::detail
