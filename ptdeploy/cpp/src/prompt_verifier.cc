#include "prompt_verifier.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base_alone.hpp"
#include "numbers.hpp"
#include "paths.hpp"
#include "quality.hpp"

namespace ptdeploy::detail {
namespace {

// What is a short vector of logits, beside the length that half of the reference's have at most. Of
// two classes that are as likely the logits may be (a, -a) of any small a: rounding turns them.
constexpr double kShortShare = 0.3;

// `types` are the rows' segments, or none.
std::vector<Logits> run(const EngineState& state, const std::vector<Ids>& rows,
                        const Chosen& chosen, const std::vector<Ids>& types,
                        std::string& stopped) {
  try {
    return state.task->logits(rows, chosen, types);
  } catch (const EngineFault& error) {
    stopped = error.problem();
  }
  std::vector<Logits> none;
  const std::vector<RowPrompt> prompts = chosen.of(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t count = state.kind().positions(rows[i].size());
    const std::size_t columns = state.task->columns(prompts[i] ? prompts[i]->info : PromptInfo());
    none.push_back({count, columns,
                    std::vector<float>(count * columns, std::numeric_limits<float>::quiet_NaN())});
  }
  return none;
}

}  // namespace

std::vector<Logits> logits_of(const EngineState& state, const std::vector<ReferenceRow>& asked,
                              const Chosen& chosen, std::string& stopped) {
  std::vector<Ids> rows, types;
  bool segments = false;
  for (const ReferenceRow& row : asked) {
    rows.push_back(row.ids);
    types.push_back(row.type_ids.empty() ? Ids(row.ids.size()) : row.type_ids);
    segments = segments || !row.type_ids.empty();
  }
  if (!segments) types.clear();
  return run(state, rows, chosen, types, stopped);
}

ParityCase measured(const std::string& name, const std::vector<ReferenceRow>& wanted,
                    const std::vector<Logits>& got, const Bounds& bounds) {
  ParityCase out;
  out.name = name;
  Measure measure(bounds.allowed, bounds.short_norm);
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const Logits& want = wanted[i].logits;
    // The reference has the last positions of a row.
    const std::size_t skipped = got[i].rows - want.rows;
    for (std::size_t at = 0; at < want.rows; ++at)
      measure.add(want.row(at), got[i].row(skipped + at), want.columns);
    out.lengths.push_back(wanted[i].ids.size());
  }
  const Measured found = measure.result();
  out.max_abs = found.max_abs;
  out.mean_abs = found.mean_abs;
  out.cosine = found.cosine;
  out.kl = found.kl;
  out.top1_agreement = found.top1_agreement;
  if (!bounds.outputs.empty()) {
    std::vector<double> largest(bounds.outputs.size(), 0);
    for (std::size_t i = 0; i < wanted.size(); ++i)
      add_apart(largest, got[i], wanted[i].logits);
    out.output = furthest(largest, bounds.outputs);
  }
  out.passed = within(found, bounds.thresholds, bounds.allowed) && !out.output;
  return out;
}

std::vector<ParityGreedy> continued(const EngineState& state,
                                    const std::vector<ReferenceGreedy>& wanted, std::size_t steps,
                                    const std::vector<Bounds>& bounds, const Chosen& chosen) {
  GenerateOptions options;
  options.max_new_tokens = static_cast<std::int64_t>(steps);
  options.do_sample = false;
  options.logprobs = true;
  options.min_new_tokens = 0;
  options.repetition_penalty = 1;
  options.eos_token_ids.emplace();
  std::vector<Ids> rows;
  for (const ReferenceGreedy& one : wanted) rows.push_back(one.ids);
  std::vector<Generated> found(rows.size());
  std::string stopped;
  try {
    found = state.task->generate(rows, chosen, options, {});
  } catch (const EngineFault& error) {
    stopped = error.problem();
  }
  const std::vector<RowPrompt> prompts = chosen.of(rows.size());
  std::vector<ParityGreedy> out;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    out.push_back({rows[i].size(), 0, steps, false, stopped, false, false, {}, {}});
    if (!stopped.empty()) continue;
    std::size_t& agreed = out.back().agreed;
    while (agreed < steps && wanted[i].tokens[agreed] == found[i].token_ids[agreed]) ++agreed;
    // Where the reference's own best two lie that near, either token is as right.
    out.back().passed = agreed == steps || wanted[i].margins[agreed] <= bounds[i].tie();
    hold_to_own(out.back(), state, rows[i], found[i], bounds[i].decode(), prompts[i]);
  }
  return out;
}

PromptVerifier::PromptVerifier(const EngineState& state, RowPrompt prompt, const FileEntry& file)
    : PromptVerifier(state, std::move(prompt), join(state.bundle.path, file.path),
                     Held::Reading(*state.bundle.held, file.path).path()) {}

PromptVerifier::PromptVerifier(const EngineState& state, RowPrompt prompt, const std::string& file,
                               const std::string& opened)
    : state_(state),
      prompt_(std::move(prompt)),
      info_(prompt_ ? prompt_->info : PromptInfo()),
      reference_(file, opened, state, info_),
      bounds_{reference_.metadata().thresholds, 0, 0, {}, {}, {}} {
  read_rows();
  bounds_.allowed = bounds_.thresholds.allowed(largest_logit_);
}

ReferenceRow PromptVerifier::row(std::size_t place) {
  return reference_.row(std::min(place, reference_.metadata().rows - 1));
}

std::vector<ReferenceGreedy> PromptVerifier::furthest() {
  std::vector<ReferenceGreedy> out;
  for (std::size_t i = 0; state_.kind().writes && i < reference_.metadata().greedy; ++i) {
    ReferenceGreedy one = reference_.greedy(i);
    if (!out.empty() && one.tokens.size() < out[0].tokens.size()) continue;
    if (!out.empty() && one.tokens.size() > out[0].tokens.size()) out.clear();
    out.push_back(std::move(one));
  }
  return out;
}

ParityReport PromptVerifier::compared() {
  ParityReport out;
  const Manifest& manifest = state_.manifest();
  out.prompt = prompt_ ? prompt_->name : "";
  out.reference = reference_.metadata().made_by;
  if (!manifest.quantization) out.largest_allowed = bounds_.allowed;
  for (const BatchCase& one : reference_.cases()) out.cases.push_back(compare(one));
  if (const auto effect = effect_.result("")) out.effects.push_back(*effect);
  if (manifest.quantization) {
    std::string stopped;
    const Quantization allowed = manifest.quantization->of_head(info_.head);
    out.quality = evaluate(reference_, state_.kind(), info_.head, allowed,
                           [&](const std::vector<Ids>& rows, const std::vector<Ids>& types) {
                             std::string why;
                             std::vector<Logits> got = run(state_, rows, {{prompt_}}, types, why);
                             if (stopped.empty()) stopped = why;
                             return got;
                           });
    if (out.quality) out.quality->stopped = stopped;
    bounds_.own = out.own_allowed = own_bound(out.quality, largest_logit_);
    bounds_.own_outputs = own_outputs(out.quality, scales_);
    for (std::size_t i = 0; i < out.cases.size(); ++i)
      hold_to_own(out.cases[i], *bounds_.own, bounds_.own_outputs, apart_[i]);
  }
  if (state_.kind().writes) {
    out.decode_allowed = bounds_.decode();
    out.greedy = compare_greedy();
  }
  out.notes = notes(out);
  add_base_alone(out, state_, prompt_, reference_, bounds_, furthest());
  if (!state_.bundle.file("tokenizer").empty())
    out.texts_not_compared = reference_.metadata().texts;
  if (const std::size_t texts = out.texts_not_compared; texts > 0)
    out.notes.push_back("the tokenizer was not compared (" + std::to_string(texts) +
                        " texts): only Python's ptdeploy verify compares it.");
  return out;
}

void PromptVerifier::read_rows() {
  std::vector<double> scales(reference_.columns(), 0);
  std::vector<double> lengths;
  for (std::size_t i = 0; i < reference_.metadata().rows; ++i) {
    const ReferenceRow one = reference_.row(i);
    longest_ = std::max(longest_, one.ids.size());
    for (std::size_t at = 0; at < one.logits.values.size(); ++at) {
      const double value = one.logits.values[at];
      double& scale = scales[at % scales.size()];
      scale = std::max(scale, std::abs(value));
      if (at % scales.size() == 0) lengths.push_back(0);
      lengths.back() += value * value;
    }
  }
  if (!lengths.empty()) {
    const auto middle = lengths.begin() + static_cast<std::ptrdiff_t>((lengths.size() - 1) / 2);
    std::nth_element(lengths.begin(), middle, lengths.end());
    bounds_.short_norm = kShortShare * std::sqrt(*middle);
  }
  for (double scale : scales) largest_logit_ = std::max(largest_logit_, scale);
  if (info_.head == Head::softmax || scales.size() < 2) return;
  for (double scale : scales) bounds_.outputs.push_back(bounds_.thresholds.allowed(scale));
  scales_ = std::move(scales);
}

ParityCase PromptVerifier::compare(const BatchCase& one) {
  std::vector<ReferenceRow> wanted;
  for (std::size_t index : one.rows) wanted.push_back(reference_.row(index));
  std::string stopped;
  const std::vector<Logits> got = logits_of(state_, wanted, {{prompt_}}, stopped);
  if (one.rows.size() == 1) {
    const Logits without = reference_.without_prompt(one.rows[0]);
    if (state_.manifest().quantization && without.rows > 0)
      effect_.add(wanted[0].logits, got[0], without);
  }
  ParityCase out = measured(one.name, wanted, got, bounds_);
  out.stopped = stopped;
  apart_.emplace_back();
  if (state_.manifest().quantization && one.rows.size() > 1) {
    std::vector<double> apart = add_own(out, got, alone(one));
    if (!scales_.empty()) apart_.back() = std::move(apart);
  }
  return out;
}

const std::vector<OwnRow>& PromptVerifier::alone(const BatchCase& one) {
  if (one.rows == last_) return own_;
  own_.clear();
  for (std::size_t index : one.rows)
    own_.push_back(row_alone(state_, reference_.row(index), prompt_));
  last_ = one.rows;
  return own_;
}

// Every row as far as the reference goes, in batches of unequal rows. A batch ends with the row
// that has the fewest tokens: those that go on stand in the next one, too. Of a row that fails the
// first such result counts, beside whatever rows that was.
std::vector<ParityGreedy> PromptVerifier::compare_greedy() {
  std::vector<ReferenceGreedy> wanted;
  std::vector<std::size_t> left;
  for (std::size_t i = 0; i < reference_.metadata().greedy; ++i) {
    wanted.push_back(reference_.greedy(i));
    left.push_back(i);
  }
  const auto tokens = [&wanted](std::size_t i) { return wanted[i].tokens.size(); };
  std::stable_sort(left.begin(), left.end(),
                   [&](std::size_t a, std::size_t b) { return tokens(a) < tokens(b); });
  const std::int64_t bound = state_.manifest().limits.max_batch.value_or(0);
  const std::size_t most = bound > 0 ? static_cast<std::size_t>(bound) : left.size();
  std::vector<ParityGreedy> out(wanted.size());
  while (!left.empty()) {
    const std::size_t count = std::min(most, left.size()), steps = tokens(left[0]);
    std::vector<ReferenceGreedy> batch;
    for (std::size_t i = 0; i < count; ++i) batch.push_back(wanted[left[i]]);
    const std::vector<Bounds> bounds(count, bounds_);
    std::vector<ParityGreedy> found = continued(state_, batch, steps, bounds, {{prompt_}});
    for (std::size_t i = 0; i < count; ++i)
      if (const std::size_t row = left[i]; out[row].total == 0 || out[row].passed)
        out[row] = std::move(found[i]);
    std::size_t ended = 0;
    while (ended < count && tokens(left[ended]) == steps) ++ended;
    left.erase(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(ended));
  }
  return out;
}

std::vector<std::string> PromptVerifier::notes(const ParityReport& report) const {
  std::vector<std::string> out;
  const auto& mismatch = reference_.metadata().padded_mismatch;
  if (mismatch && *mismatch > bounds_.allowed)
    out.push_back(std::string("PEFT's own ") + (state_.kind().writes ? "left" : "right") +
                  "-padded batch does not match its rows alone, by " +
                  formatted(*mismatch, 2, 'g') + "; the reference here is each row alone.");
  const std::int64_t most = state_.manifest().limits.max_context - info_.num_virtual_tokens;
  if (static_cast<std::int64_t>(longest_) < most)
    out.push_back("no row of over " + std::to_string(longest_) +
                  " tokens was run, but the bundle takes up to " + std::to_string(most) +
                  "; give such rows with --data.");
  if (report.quality)
    for (std::string& note : quality_notes(*report.quality)) out.push_back(std::move(note));
  for (const ParityEffect& one : report.effects)
    if (!one.told) out.push_back(effect_note(one));
  return out;
}

}  // namespace ptdeploy::detail
