// verify BUNDLE: whether the engine still gives, on this machine, what the bundle says it must.
// Exit codes: 0 within thresholds, 1 mismatch, 2 bad input or bundle, 3 target not available here.
#include <stdlib.h>

#include <algorithm>
#include <cstdio>

#include "ptdeploy/ptdeploy.hpp"

namespace {

using ptdeploy::ParityCase;
using ptdeploy::ParityReport;
using ptdeploy::printable;

// All cases of one name, at their worst.
struct Group {
  ParityCase worst;
  std::size_t runs = 0, longest = 0;
  bool fails = false;
};

void keep_larger(std::optional<double>& largest, const std::optional<double>& other) {
  if (largest && (!other || *other > *largest)) largest = other;
}

std::vector<Group> grouped(const std::vector<ParityCase>& cases) {
  std::vector<Group> groups;
  for (const ParityCase& one : cases) {
    auto found = std::find_if(groups.begin(), groups.end(),
                              [&](const Group& group) { return group.worst.name == one.name; });
    if (found == groups.end()) found = groups.insert(found, {one, 0, 0, false});
    ++found->runs;
    for (std::size_t length : one.lengths) found->longest = std::max(found->longest, length);
    keep_larger(found->worst.max_abs, one.max_abs);
    keep_larger(found->worst.mean_abs, one.mean_abs);
    keep_larger(found->worst.kl, one.kl);
    found->worst.top1_agreement = std::min(found->worst.top1_agreement, one.top1_agreement);
    found->worst.passed = found->worst.passed && one.passed;
    found->fails = found->fails || !one.stopped.empty();
  }
  return groups;
}

std::string short_text(const std::optional<double>& number) {
  if (!number) return "not finite";
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", *number);
  return text;
}

// An engine that fails gives no numbers that could be wrong.
const char* verdict(const ParityReport& report) {
  if (report.passed) return "parity holds";
  bool fails = false, mismatch = false;
  const auto wrong = [](const auto& one) { return !one.passed && one.stopped.empty(); };
  const auto add = [&](const ParityReport& one) {
    fails = fails || one.engine_faults > 0;
    mismatch = mismatch || std::any_of(one.cases.begin(), one.cases.end(), wrong) ||
               std::any_of(one.greedy.begin(), one.greedy.end(), wrong);
  };
  add(report);
  for (const ParityReport& other : report.prompts) add(other);
  if (!fails) return "PARITY MISMATCH";
  return mismatch ? "THE ENGINE FAILS, AND THERE IS A PARITY MISMATCH" : "THE ENGINE FAILS";
}

// What an agreement is of, and in how many texts.
std::string of_answers(const ptdeploy::ParityQuality& quality) {
  const std::string texts = std::to_string(quality.texts) + " texts";
  if (quality.measured != ptdeploy::ParityQuality().measured) return "over " + texts;
  const std::string all = std::to_string(quality.positions);
  if (!quality.clear) return "of " + all + " positions in " + texts;
  if (*quality.clear == 0) return "of " + all + " answers, none of them clear, in " + texts;
  return "of " + std::to_string(*quality.clear) + " clear answers in " + texts;
}

// Of clear answers, or of all of them where none is clear.
double agreement(const ptdeploy::ParityQuality& quality) {
  if (!quality.clear || *quality.clear > 0 || quality.positions == 0) return quality.top1_agreement;
  const auto all = static_cast<double>(quality.positions);
  return (all - static_cast<double>(quality.near_ties.value_or(0))) / all;
}

// What is to be known of them, in brackets.
std::string aside(const ptdeploy::ParityQuality& quality) {
  std::string words;
  if (quality.clear && *quality.clear > 0 && *quality.clear < quality.positions)
    words = "the others of " + std::to_string(quality.positions) + " are near ties";
  if (quality.detectable) {
    char share[32];
    std::snprintf(share, sizeof share, "%.1f%%", 100 * *quality.detectable);
    words += std::string(words.empty() ? "" : "; ") + "a fault that changes " + share +
             " of the answers would be seen 19 times of 20";
  }
  return words.empty() ? "" : " (" + words + ")";
}

void print(const ptdeploy::ParityEffect& one) {
  const char* logits = one.without_prompt ? "logits without a prompt" : "the prompt's logits";
  const std::string of =
      one.other.empty()
          ? "what the prompt changes in the logits"
          : "what sets " + std::string(logits) + " apart from those of '" + printable(one.other) + "'";
  if (one.missing) std::printf("%.1f%%", 100 * *one.missing);
  if (!one.missing) std::printf("an unknown share");
  std::printf(" of %s is missing, at most 50%%\n", of.c_str());
}

void print(const ParityReport& report) {
  std::printf("%-28s%5s%8s%10s%10s%10s%9s\n", "case", "runs", "longest", "max abs", "mean abs",
              "KL", "top-1");
  for (const Group& group : grouped(report.cases))
    std::printf("%-28s%5zu%8zu%10s%10s%10s%8.2f%%%s\n", printable(group.worst.name).c_str(),
                group.runs, group.longest, short_text(group.worst.max_abs).c_str(),
                short_text(group.worst.mean_abs).c_str(), short_text(group.worst.kl).c_str(),
                100 * group.worst.top1_agreement,
                group.worst.passed ? ""
                : group.fails      ? "  FAILS"
                                   : "  MISMATCH");
  if (report.quality)
    std::puts("rows alone are not judged: quantized weights are held to what much text says");
  if (report.own_allowed)
    std::printf("beside other rows, or continued, a row is held to what the engine gives for it alone: "
                "allowed %.2g\n", *report.own_allowed);
  for (const auto& one : report.greedy)
    std::printf("greedy tokens, row of %zu%s%s: %zu of %zu agree\n", one.length,
                one.without_prompt ? ", without a prompt" : "", one.mixed ? ", mixed prompts" : "",
                one.agreed, one.total);
  if (const auto& quality = report.quality; quality && quality->stopped.empty()) {
    std::printf("quantized weights on %s: %s %.2f%% %s%s", printable(quality->evaluated_on).c_str(),
                quality->measured.c_str(), 100 * agreement(*quality), of_answers(*quality).c_str(),
                aside(*quality).c_str());
    if (quality->logits_error) std::printf(", logits error %.2g", *quality->logits_error);
    if (quality->perplexity_ratio)
      std::printf(", perplexity %.3f times the reference's", *quality->perplexity_ratio);
    std::printf(", %s\n", quality->asked_for.c_str());
  }
  for (const auto& one : report.effects) print(one);
  if (report.largest_allowed) std::printf("allowed max abs %.2g; ", *report.largest_allowed);
  std::printf("reference: %s\n", printable(report.reference).c_str());
  for (std::size_t i = 0; i < report.own_failures; ++i)
    std::printf("%s%s\n", i < report.engine_faults ? "" : "mismatch: ",
                printable(report.failures[i]).c_str());
  for (const std::string& note : report.notes) std::printf("note: %s\n", printable(note).c_str());
}

void print_all(const ParityReport& report) {
  const auto add = [&report](const ParityReport& one) {
    if (report.prompts.empty()) return print(one);
    if (one.prompt.empty()) std::puts("without a prompt");
    if (!one.prompt.empty()) std::printf("prompt '%s'\n", printable(one.prompt).c_str());
    print(one);
  };
  add(report);
  for (const ParityReport& other : report.prompts) add(other);
  std::puts(verdict(report));
}

}  // namespace

int main(int argc, char** argv) {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  if (argc != 2) return std::fprintf(stderr, "usage: verify BUNDLE\n"), 2;
  try {
    const ParityReport report = ptdeploy::Engine::open(argv[1]).verify();
    print_all(report);
    return report.passed ? 0 : 1;
  } catch (const ptdeploy::TargetUnavailable& error) {
    std::fprintf(stderr, "verify: %s\n", error.what());
    return 3;
  } catch (const ptdeploy::OutOfMemory& error) {
    std::fprintf(stderr, "verify: %s\n", error.what());
    return 3;
  } catch (const ptdeploy::Error& error) {
    std::fprintf(stderr, "verify: %s\n", error.what());
    return 2;
  }
}
