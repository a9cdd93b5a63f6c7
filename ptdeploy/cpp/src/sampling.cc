#include "sampling.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "layout.hpp"
#include "numbers.hpp"

namespace ptdeploy::detail {
namespace {

void normalise(std::vector<Choice>& choices) {
  double total = 0;
  for (const Choice& choice : choices) total += choice.probability;
  for (Choice& choice : choices) choice.probability /= total;
}

// The nearest number to a positive one whose quotients mean something: not 0, not infinite.
float divisor_of(double value) {
  using Float = std::numeric_limits<float>;
  return static_cast<float>(std::clamp(value, double{Float::min()}, double{Float::max()}));
}

// Where a quotient is too large for a float, what a temperature near 0 means: the likeliest.
void weigh(std::vector<Choice>& choices, const float* logits, double temperature) {
  const float divisor = divisor_of(temperature);
  float top = -std::numeric_limits<float>::infinity(), likeliest = top;
  for (const Choice& choice : choices) {
    likeliest = std::max(likeliest, logits[choice.token]);
    top = std::max(top, logits[choice.token] / divisor);
  }
  for (Choice& choice : choices) {
    const float logit = logits[choice.token];
    choice.probability =
        std::isfinite(top) ? std::exp(logit / divisor - top) : (logit == likeliest ? 1 : 0);
  }
  normalise(choices);
}

// The fewest likeliest tokens that hold `top_p` together, at least one.
void cut_nucleus(std::vector<Choice>& choices, double top_p) {
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.probability > b.probability; });
  double before = 0;
  std::size_t kept = 0;
  while (kept < choices.size() && (kept == 0 || before < top_p))
    before += choices[kept++].probability;
  choices.resize(kept);
  std::sort(choices.begin(), choices.end(),
            [](const Choice& a, const Choice& b) { return a.token < b.token; });
  normalise(choices);
}

void cut_unlikely(std::vector<Choice>& choices, double min_p) {
  double top = 0;
  for (const Choice& choice : choices) top = std::max(top, choice.probability);
  choices.erase(
      std::remove_if(choices.begin(), choices.end(),
                     [&](const Choice& choice) { return choice.probability < min_p * top; }),
      choices.end());
  normalise(choices);
}

}  // namespace

std::optional<OutOfRange> out_of_range(const GenerationOptions& o, std::int64_t vocabulary) {
  const std::string most = std::to_string(kMost);
  auto count = [](std::int64_t value) { return value >= 0 && value <= kMost; };
  auto positive = [](double value) { return std::isfinite(value) && value > 0; };
  if (!count(o.max_new_tokens))
    return OutOfRange{"max_new_tokens", std::to_string(o.max_new_tokens), "at least 0 and at most " + most};
  if (!count(o.min_new_tokens))
    return OutOfRange{"min_new_tokens", std::to_string(o.min_new_tokens), "at least 0 and at most " + most};
  if (!positive(o.temperature))
    return OutOfRange{"temperature", shortest(o.temperature), "more than 0"};
  if (!count(o.top_k))
    return OutOfRange{"top_k", std::to_string(o.top_k), "at least 1, or 0 for all, and at most " + most};
  if (!(o.top_p > 0 && o.top_p <= 1))
    return OutOfRange{"top_p", shortest(o.top_p), "more than 0 and at most 1"};
  if (!(o.min_p >= 0 && o.min_p <= 1)) return OutOfRange{"min_p", shortest(o.min_p), "from 0 to 1"};
  if (!positive(o.repetition_penalty))
    return OutOfRange{"repetition_penalty", shortest(o.repetition_penalty), "more than 0"};
  for (std::int64_t id : o.eos_token_ids)
    if (id < 0 || id >= vocabulary)
      return OutOfRange{"eos_token_ids", std::to_string(id),
                        "token ids from 0 to " + std::to_string(vocabulary - 1)};
  return std::nullopt;
}

void check(const GenerationOptions& options, std::int64_t vocabulary) {
  const auto problem = out_of_range(options, vocabulary);
  if (!problem) return;
  // A request's only, which takes it before.
  const bool takes_zero = problem->name == std::string("temperature");
  throw InputError(std::string(problem->name) + " is " + problem->value + "; it must be " +
                   problem->range + (takes_zero ? ", or 0 for the likeliest token" : "") + ".");
}

Sampler::Sampler(const GenerationOptions& options, const Ids& prompt_ids,
                 std::optional<std::uint64_t> seed)
    : options_(options) {
  if (options.do_sample) {
    std::random_device device;
    random_.seed(seed ? *seed : static_cast<std::uint64_t>(device()) << 32 | device());
  }
  if (options.repetition_penalty != 1) seen_.insert(prompt_ids.begin(), prompt_ids.end());
}

std::int64_t Sampler::next(const float* logits, std::size_t vocabulary) {
  // NaN is never the largest, but no choice beside it means anything.
  float top = logits[0];
  for (std::size_t i = 0; i < vocabulary; ++i)
    top = logits[i] > top || std::isnan(logits[i]) ? logits[i] : top;
  if (!std::isfinite(top))
    throw EngineFault("The engine gave logits that are not finite.",
                      "Hold the bundle against its reference: ptdeploy verify BUNDLE");
  const bool too_early = chosen_ < options_.min_new_tokens && !options_.eos_token_ids.empty();
  if (!seen_.empty() || too_early) {
    changed_.assign(logits, logits + vocabulary);
    const float penalty = divisor_of(options_.repetition_penalty);
    for (std::int64_t id : seen_) {
      float& score = changed_[static_cast<std::size_t>(id)];
      score = score < 0 ? score * penalty : score / penalty;
    }
    if (too_early)
      for (std::int64_t id : options_.eos_token_ids)
        if (static_cast<std::size_t>(id) < vocabulary)
          changed_[static_cast<std::size_t>(id)] = -std::numeric_limits<float>::infinity();
    logits = changed_.data();
  }
  const std::int64_t token = options_.do_sample
                                 ? draw(logits, vocabulary)
                                 : std::max_element(logits, logits + vocabulary) - logits;
  ++chosen_;
  if (options_.repetition_penalty != 1) seen_.insert(token);
  return token;
}

std::int64_t Sampler::draw(const float* logits, std::size_t vocabulary) {
  const std::vector<Choice> choices = distribution(logits, vocabulary, options_);
  // 53 random bits as a number in [0, 1): the same everywhere, unlike uniform_real_distribution.
  const double place = static_cast<double>(random_() >> 11) * 0x1.0p-53;
  double sum = 0;
  for (const Choice& choice : choices) {
    sum += choice.probability;
    if (sum > place) return choice.token;
  }
  return choices.back().token;
}

std::vector<Choice> distribution(const float* logits, std::size_t vocabulary,
                                 const GenerationOptions& options) {
  float edge = -std::numeric_limits<float>::infinity();
  if (options.top_k > 0 && static_cast<std::size_t>(options.top_k) < vocabulary) {
    std::vector<float> scores(logits, logits + vocabulary);
    auto place = scores.begin() + (options.top_k - 1);
    std::nth_element(scores.begin(), place, scores.end(), std::greater<float>());
    edge = *place;
  }
  std::vector<Choice> choices;
  for (std::size_t token = 0; token < vocabulary; ++token)
    if (logits[token] >= edge) choices.push_back({static_cast<std::int64_t>(token), 0});
  weigh(choices, logits, options.temperature);
  if (options.top_p < 1) cut_nucleus(choices, options.top_p);
  if (options.min_p > 0) cut_unlikely(choices, options.min_p);
  return choices;
}

double log_probability(const float* logits, std::size_t vocabulary, std::int64_t token) {
  const float top = *std::max_element(logits, logits + vocabulary);
  double total = 0;
  for (std::size_t i = 0; i < vocabulary; ++i) total += std::exp(logits[i] - top);
  return static_cast<double>(logits[token]) - top - std::log(total);
}

}  // namespace ptdeploy::detail
