#include "failures.hpp"

#include <algorithm>

#include "effect.hpp"
#include "numbers.hpp"

namespace ptdeploy::detail {
namespace {

std::string shown(const std::optional<double>& number) {
  return number ? formatted(*number, 3, 'g') : "not finite";
}

std::string named(const ParityCase& one) {
  std::string lengths;
  for (std::size_t length : one.lengths)
    lengths += (lengths.empty() ? "" : ", ") + std::to_string(length);
  return one.name + ", lengths [" + lengths + "]";
}

std::string output_words(const ParityCase& one) {
  if (!one.output) return "";
  return "; output " + std::to_string(one.output->output) + " is " + shown(one.output->max_abs) +
         " off, allowed " + formatted(one.output->allowed, 3, 'g');
}

std::string words_of(const ParityCase& one) {
  return named(one) + ": max abs " + shown(one.max_abs) + ", KL " +
         shown(one.kl) + ", top-1 agreement " + formatted(one.top1_agreement, 4, 'f') +
         output_words(one);
}

std::string own_words(const ParityCase& one, const std::optional<double>& allowed) {
  constexpr const char* kFrom = " from the engine's own rows alone, allowed ";
  if (!allowed || !(one.mixed || one.lengths.size() > 1)) return "";
  std::string words;
  if (!one.own_max_abs || *one.own_max_abs > *allowed)
    words = "; " + shown(one.own_max_abs) + kFrom + formatted(*allowed, 3, 'g');
  if (const auto& output = one.own_output)
    words += "; output " + std::to_string(output->output) + " is " + shown(output->max_abs) +
             kFrom + formatted(output->allowed, 3, 'g');
  return words;
}

std::string own_words(const ParityGreedy& one, const std::optional<double>& allowed) {
  const auto holds = [&](const std::optional<double>& off) { return off && *off <= *allowed; };
  const bool agrees = one.agreed == one.total;
  if (!allowed || (holds(one.steps_apart) && (agrees || holds(one.behind)))) return "";
  return "; given the text and its tokens at once, the engine finds log probabilities " +
         shown(one.steps_apart) + " off" +
         (agrees ? "" : " and a token " + shown(one.behind) + " below the likeliest") +
         ", allowed " + formatted(*allowed, 3, 'g');
}

void add_quantization(std::vector<std::string>& lines, const std::optional<ParityQuality>& quality,
                  const Quantization& allowed) {
  if (!quality) {
    lines.push_back("the reference holds no text to evaluate quantized weights on");
    return;
  }
  // NaN compares false with everything, so each bound is written as what must hold.
  if (!(quality->top1_agreement >= allowed.min_agreement))
    lines.push_back(quality->measured + " " + formatted(quality->top1_agreement, 4, 'f') + " on " +
                    quality->evaluated_on + ", but " + shortest(allowed.min_agreement) +
                    " is asked for (--min-agreement)");
  const auto& error = quality->logits_error;
  if (error && allowed.max_logits_error && !(*error <= *allowed.max_logits_error))
    lines.push_back("logits error " + formatted(*error, 4, 'f') + " on " + quality->evaluated_on +
                    ", but at most " + shortest(*allowed.max_logits_error) +
                    " is asked for (--max-logits-error)");
  const auto& ratio = quality->perplexity_ratio;
  if (ratio && !(*ratio <= allowed.max_perplexity_ratio))
    lines.push_back("perplexity " + formatted(*ratio, 4, 'f') + " times the reference's on " +
                    quality->evaluated_on + ", but at most " + shortest(allowed.max_perplexity_ratio) +
                    " is asked for (--max-perplexity-ratio)");
}

Head head_of(const ParityReport& report, const Manifest& manifest) {
  const PromptInfo* prompt = find(manifest.prompts, report.prompt);
  return prompt ? prompt->head : Head::softmax;
}

}  // namespace

std::vector<std::string> faults_of(const ParityReport& report) {
  struct Fault {
    std::string reason, first;
    std::size_t count;
  };
  std::vector<Fault> faults;
  const auto add = [&faults](const std::string& reason, const std::string& where) {
    if (reason.empty()) return;
    const auto found = std::find_if(faults.begin(), faults.end(),
                                    [&](const Fault& one) { return one.reason == reason; });
    if (found == faults.end())
      faults.push_back({reason, where, 1});
    else
      ++found->count;
  };
  for (const ParityCase& one : report.cases) add(one.stopped, named(one));
  for (const ParityGreedy& one : report.greedy)
    add(one.stopped, "greedy tokens of a row of " + std::to_string(one.length));
  const std::string runs = std::to_string(report.cases.size() + report.greedy.size());
  std::vector<std::string> lines;
  for (const Fault& one : faults)
    lines.push_back("the engine failed in " + std::to_string(one.count) + " of " + runs +
                    " runs, first in " + one.first + ": " + one.reason);
  if (report.quality && !report.quality->stopped.empty()) {
    const std::string& reason = report.quality->stopped;
    if (std::none_of(faults.begin(), faults.end(),
                     [&](const Fault& one) { return one.reason == reason; }))
      lines.push_back("the engine failed on " + report.quality->evaluated_on + ": " + reason);
  }
  return lines;
}

std::vector<std::string> failures_of(const ParityReport& report, const Manifest& manifest) {
  std::vector<std::string> lines;
  for (const ParityCase& one : report.cases)
    if (!one.passed && one.stopped.empty()) lines.push_back(words_of(one) + own_words(one, report.own_allowed));
  for (const ParityGreedy& one : report.greedy)
    if (!one.passed && one.stopped.empty())
      lines.push_back("greedy tokens of a row of " + std::to_string(one.length) +
                      (one.without_prompt ? ", without a prompt" : "") +
                      (one.mixed ? ", mixed prompts: " : ": ") + std::to_string(one.agreed) + " of " +
                      std::to_string(one.total) + " agree" + own_words(one, report.decode_allowed));
  if (manifest.quantization && !(report.quality && !report.quality->stopped.empty()))
    add_quantization(lines, report.quality,
                     manifest.quantization->of_head(head_of(report, manifest)));
  for (const ParityEffect& one : report.effects)
    if (!one.passed) lines.push_back(effect_failure(one));
  return lines;
}

}  // namespace ptdeploy::detail
