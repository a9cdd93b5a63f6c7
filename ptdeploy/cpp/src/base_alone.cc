#include "base_alone.hpp"

#include <algorithm>

#include "effect.hpp"

namespace ptdeploy::detail {
namespace {

// The rows of ptdeploy/parity/cases.py that are run without a prompt, too.
constexpr std::size_t kBaseRows[] = {0, 4, 6};
// Rows of more tokens cost more than they say.
constexpr std::size_t kLongestOfEffect = 64;
constexpr const char* kNotCompared =
    "requests without a prompt were not compared: the reference has no row of the base model "
    "alone.";

// A row of the reference without its prompt, or with it. `own` is what a quantized engine gives for
// it alone.
struct BaseRow {
  bool without_prompt;
  std::size_t place;
  ReferenceRow row;
  OwnRow own;
};

class BaseAlone {
 public:
  BaseAlone(ParityReport& report, const EngineState& state, const RowPrompt& prompt,
            Reference& reference, const Bounds& bounds)
      : report_(report), state_(state), prompt_(prompt), reference_(reference), bounds_(bounds) {}

  // Whether the reference has such rows.
  bool add_cases() {
    std::vector<BaseRow> base, pairs;
    for (std::size_t place : kBaseRows) {
      if (place >= reference_.metadata().rows) continue;
      ReferenceRow with_prompt = reference_.row(place), without = with_prompt;
      without.logits = reference_.without_prompt(place);
      if (without.logits.rows == 0) continue;
      run({{true, place, without, {}}}, "right", false);
      pairs.push_back(row_of(true, place, std::move(without)));
      base.push_back(pairs.back());
      pairs.push_back(row_of(false, place, std::move(with_prompt)));
    }
    const bool found = !base.empty();
    if (bounds_.own && found) add_effect();
    for (std::vector<BaseRow>* batch : {&base, &pairs}) {
      batch->resize(std::min(batch->size(), most(batch->size())));
      if (batch->size() > 1) run(*batch, "left", bounds_.own.has_value());
    }
    return found;
  }

  // A row continued without a prompt, beside one with it; alone where no batch has two rows.
  void add_greedy(const std::vector<ReferenceGreedy>& furthest) {
    const std::optional<ReferenceGreedy> base = reference_.base_greedy();
    if (!base) return;
    std::vector<ReferenceGreedy> rows{*base};
    Chosen chosen{{nullptr}, true};
    if (!furthest.empty() && most(2) > 1) {
      rows.push_back(furthest[0]);
      chosen.prompts.push_back(prompt_);
    }
    std::size_t steps = rows[0].tokens.size();
    for (const ReferenceGreedy& one : rows) steps = std::min(steps, one.tokens.size());
    const std::vector<Bounds> bounds(rows.size(), bounds_);
    std::vector<ParityGreedy> found = continued(state_, rows, steps, bounds, chosen);
    found[0].without_prompt = true;
    for (ParityGreedy& one : found) {
      one.mixed = rows.size() > 1;
      report_.greedy.push_back(std::move(one));
    }
  }

 private:
  // Whether a quantized engine has the prompt in rows that ask for none: such a row alone only has
  // to be finite, and beside others what it is alone. Of all rows but long ones: of a large
  // vocabulary each has one position.
  void add_effect() {
    Projection along;
    for (std::size_t place = 0; place < reference_.metadata().rows; ++place) {
      const ReferenceRow row = reference_.row(place);
      const Logits without = reference_.without_prompt(place);
      if (without.rows == 0 || row.ids.size() > kLongestOfEffect) continue;
      along.add(without, row_alone(state_, row, nullptr).logits, row.logits,
                row_alone(state_, row, prompt_).logits);
    }
    auto effect = along.result(prompt_->name);
    if (!effect) return;
    effect->without_prompt = true;
    report_.effects.push_back(*effect);
    if (!effect->told) report_.notes.push_back(effect_note(*effect));
  }

  std::size_t most(std::size_t rows) const {
    const std::int64_t bound = state_.manifest().limits.max_batch.value_or(0);
    return bound > 0 ? std::min(rows, static_cast<std::size_t>(bound)) : rows;
  }

  BaseRow row_of(bool without_prompt, std::size_t place, ReferenceRow row) const {
    OwnRow own;
    if (bounds_.own) own = row_alone(state_, row, without_prompt ? nullptr : prompt_);
    return {without_prompt, place, std::move(row), std::move(own)};
  }

  void run(const std::vector<BaseRow>& batch, const std::string& padding, bool held) {
    std::vector<ReferenceRow> rows;
    Chosen chosen{{}, true};
    for (const BaseRow& one : batch) {
      rows.push_back(one.row);
      chosen.prompts.push_back(one.without_prompt ? nullptr : prompt_);
    }
    std::string stopped;
    const std::vector<Logits> got = logits_of(state_, rows, chosen, stopped);
    const bool mixed = std::any_of(batch.begin(), batch.end(),
                                   [](const BaseRow& one) { return !one.without_prompt; });
    for (bool without_prompt : {true, false}) {
      if (!without_prompt && !mixed) continue;
      std::vector<ReferenceRow> wanted;
      std::vector<Logits> given;
      std::vector<OwnRow> alone;
      std::vector<std::size_t> places;
      for (std::size_t i = 0; i < batch.size(); ++i) {
        if (batch[i].without_prompt != without_prompt) continue;
        wanted.push_back(rows[i]);
        given.push_back(got[i]);
        alone.push_back(batch[i].own);
        places.push_back(batch[i].place);
      }
      std::string name = without_prompt ? "base mixed, " : "mixed prompts, ";
      name += padding + "-padded";
      if (!mixed)
        name = "base " + StoredCase{places, padding}.name(reference_.metadata().sources[places[0]]);
      ParityCase one = measured(name, wanted, given, bounds_);
      one.stopped = stopped;
      one.mixed = mixed;
      one.without_prompt = without_prompt;
      if (held) {
        add_own(one, given, alone);
        hold_to_own(one, *bounds_.own, {}, {});
      }
      report_.cases.push_back(std::move(one));
    }
  }

  ParityReport& report_;
  const EngineState& state_;
  const RowPrompt& prompt_;
  Reference& reference_;
  const Bounds& bounds_;
};

}  // namespace

void add_base_alone(ParityReport& report, const EngineState& state, const RowPrompt& prompt,
                    Reference& reference, const Bounds& bounds,
                    const std::vector<ReferenceGreedy>& furthest) {
  if (!state.kind().takes_base || !prompt) return;
  BaseAlone base(report, state, prompt, reference, bounds);
  if (base.add_cases()) return base.add_greedy(furthest);
  if (!state.bundle.entry("reference", std::nullopt)) report.notes.push_back(kNotCompared);
}

}  // namespace ptdeploy::detail
