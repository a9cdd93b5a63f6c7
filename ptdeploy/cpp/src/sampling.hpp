// From a row's logits to its next token, with transformers' meanings and in transformers' order.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace ptdeploy::detail {

// The first option that is out of its range, its value, and that range.
struct OutOfRange {
  const char* name;
  std::string value, range;
};
std::optional<OutOfRange> out_of_range(const GenerationOptions& options, std::int64_t vocabulary);
// Throws InputError naming it.
void check(const GenerationOptions& options, std::int64_t vocabulary);

// Chooses one row's tokens. The penalty counts the text's own tokens too, not the virtual ones.
class Sampler {
 public:
  Sampler(const GenerationOptions& options, const Ids& prompt_ids,
          std::optional<std::uint64_t> seed);
  // The next token for logits (vocabulary,), which are left as they are.
  std::int64_t next(const float* logits, std::size_t vocabulary);

 private:
  std::int64_t draw(const float* logits, std::size_t vocabulary);

  const GenerationOptions& options_;
  std::mt19937_64 random_;
  std::set<std::int64_t> seen_;
  std::vector<float> changed_;
  std::int64_t chosen_ = 0;
};

struct Choice {
  std::int64_t token;
  double probability;
};

// What is drawn from, in ascending order of tokens. Cut by top_k, then top_p, then min_p, each
// over what the one before left; equal scores at the edge of top_k are all kept.
std::vector<Choice> distribution(const float* logits, std::size_t vocabulary,
                                 const GenerationOptions& options);

// The natural log of the model's own probability of a token.
double log_probability(const float* logits, std::size_t vocabulary, std::int64_t token);

}  // namespace ptdeploy::detail
