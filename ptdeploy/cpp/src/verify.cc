// verify(): an open engine against the bundle's stored reference.
#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "failures.hpp"
#include "out_of_memory.hpp"
#include "paths.hpp"
#include "prompt_verifier.hpp"
#include "schema.hpp"

namespace ptdeploy {
namespace detail {
namespace {

// Rows of several prompts in one batch, of each its rows 1 and 5 where there are as many: the batches
// of ptdeploy/parity/mixed.py.
constexpr std::size_t kMixedRows[] = {1, 5};
constexpr std::size_t kWidestMix = 8;
// With how many others' prompts each is compared.
constexpr std::size_t kMostOthers = 16;

// The names of the prompts to be compared, in the order of Python's reports; none is the base model.
std::vector<std::optional<std::string>> compared_names(const Manifest& manifest) {
  std::vector<std::optional<std::string>> names{manifest.default_prompt};
  std::set<std::string> others;
  for (const auto& one : manifest.prompts) others.insert(one.first);
  if (manifest.default_prompt) others.erase(*manifest.default_prompt);
  names.insert(names.end(), others.begin(), others.end());
  for (const FileEntry& one : manifest.files)
    if (manifest.default_prompt && one.role == "reference" && !one.of) {
      names.emplace_back();
      break;
    }
  return names;
}

// All prompts of the engine's own bundle, though they were unloaded.
class BundleVerifier {
 public:
  explicit BundleVerifier(const EngineState& state) : state_(state) {}
  BundleVerifier(const BundleVerifier&) = delete;
  BundleVerifier& operator=(const BundleVerifier&) = delete;
  ~BundleVerifier() {
    for (const Proven& one : proven_)
      if (one.prompt) state_.task->forget(one.prompt);
  }

  ParityReport report() {
    // Opening looked at what the default prompt needs; and files may be damaged where they lie.
    for (const FileEntry& one : state_.manifest().files) check_hash(state_.bundle, one);
    for (const auto& name : compared_names(state_.manifest())) prove(name);
    add_mixed();
    ParityReport own;
    for (Proven& one : proven_) {
      conclude(one.report);
      if (&one == proven_.data())
        own = std::move(one.report);
      else
        add(own, std::move(one.report));
    }
    return own;
  }

 private:
  struct Proven {
    RowPrompt prompt;
    Bounds bounds;
    std::vector<ReferenceRow> mixed_rows;
    std::vector<OwnRow> own_rows;  // of quantized weights: what the engine gives for each alone
    std::vector<ReferenceGreedy> furthest;
    ParityReport report;
  };
  struct MixedRow {
    std::size_t whose, place;
  };

  void prove(const std::optional<std::string>& name) {
    const Bundle& bundle = state_.bundle;
    const FileEntry* file = bundle.entry("reference", name);
    if (!file)
      throw InputError(bundle.path + ": holds no stored reference" + words_of(name) + ".",
                       "Compile the checkpoint again, or compare with it in Python: ptdeploy verify "
                       "BUNDLE --checkpoint CHECKPOINT");
    const RowPrompt prompt =
        name ? own_place(bundle, *name, *find(bundle.manifest.prompts, *name))
                   .read(bundle.manifest, *name)
             : nullptr;
    proven_.push_back({prompt, {}, {}, {}, {}, {}});
    try {
      prove(proven_.back(), *file);
    } catch (const FileFault& fault) {
      throw BundleError(join(bundle.path, file->path) + ": cannot be read (" +
                        reason_of(fault.number) + ").");
    }
  }

  void prove(Proven& one, const FileEntry& file) {
    // It is open no longer than it is read: there may be a thousand.
    PromptVerifier verifier(state_, one.prompt, file);
    one.report = verifier.compared();
    one.bounds = verifier.bounds();
    for (std::size_t place : kMixedRows) {
      one.mixed_rows.push_back(verifier.row(place));
      if (one.bounds.own)
        one.own_rows.push_back(row_alone(state_, one.mixed_rows.back(), one.prompt));
    }
    one.furthest = verifier.furthest();
  }

  std::string words_of(const std::optional<std::string>& name) const {
    if (name == state_.manifest().default_prompt) return "";
    return " of " + (name ? "the prompt " + quoted(*name) : std::string("the base model alone"));
  }

  void add_mixed() {
    std::vector<MixedRow> rows;
    std::vector<std::size_t> written;
    for (std::size_t i = 0; i < std::size(kMixedRows); ++i)
      for (std::size_t whose = 0; whose < proven_.size(); ++whose)
        rows.push_back({whose, i});
    for (std::size_t whose = 0; whose < proven_.size(); ++whose)
      if (!proven_[whose].furthest.empty()) written.push_back(whose);
    // Once for each padding that Python compares: here they are one batch.
    for (const auto& batch : batches(rows))
      for (const char* padding : {"right", "left"}) run_mixed(batch, padding);
    for (const auto& batch : batches(written)) continue_mixed(batch);
    if (state_.kind().writes)
      for (Proven& one : proven_) add_effects(one);
  }

  // Whether a quantized engine has others' prompts in the place of one, as its rows alone show.
  void add_effects(Proven& one) const {
    for (std::size_t i = 0; i < std::min(proven_.size(), kMostOthers); ++i) {
      const Proven& other = proven_[i];
      if (&other == &one || other.report.prompt.empty() || !one.bounds.own || !other.bounds.own)
        continue;
      Projection along;
      // Of a short reference two places are one row, which says nothing more the second time.
      std::set<Ids> counted;
      for (std::size_t place = 0; place < one.mixed_rows.size(); ++place)
        if (one.mixed_rows[place].ids == other.mixed_rows[place].ids &&
            counted.insert(one.mixed_rows[place].ids).second)
          along.add(one.mixed_rows[place].logits, one.own_rows[place].logits,
                    other.mixed_rows[place].logits, other.own_rows[place].logits);
      const auto effect = along.result(other.report.prompt);
      if (!effect) continue;
      one.report.effects.push_back(*effect);
      if (!effect->told) one.report.notes.push_back(effect_note(*effect));
    }
  }

  // Rows in batches in which neighbours have different prompts. A last row that would be alone has the
  // one before it beside it once more.
  template <class Row>
  std::vector<std::vector<Row>> batches(const std::vector<Row>& rows) const {
    const std::int64_t bound = state_.manifest().limits.max_batch.value_or(0);
    const std::size_t widest =
        bound > 0 ? std::min(kWidestMix, static_cast<std::size_t>(bound)) : kWidestMix;
    std::vector<std::vector<Row>> out;
    if (widest < 2 || proven_.size() < 2 || rows.size() < 2) return out;
    for (std::size_t start = 0; start < rows.size(); start += widest) {
      const std::size_t first = rows.size() - start > 1 ? start : start - 1;
      const std::size_t end = std::min(rows.size(), start + widest);
      out.emplace_back(rows.begin() + static_cast<std::ptrdiff_t>(first),
                       rows.begin() + static_cast<std::ptrdiff_t>(end));
    }
    return out;
  }

  // A row of each prompt, of unequal lengths, continued together as far as all were.
  void continue_mixed(const std::vector<std::size_t>& batch) {
    std::vector<ReferenceGreedy> rows;
    std::vector<Bounds> bounds;
    Chosen chosen{{}, true};
    std::size_t steps = std::numeric_limits<std::size_t>::max();
    for (std::size_t place = 0; place < batch.size(); ++place) {
      const Proven& one = proven_[batch[place]];
      rows.push_back(one.furthest[place % one.furthest.size()]);
      steps = std::min(steps, rows.back().tokens.size());
      bounds.push_back(one.bounds);
      chosen.prompts.push_back(one.prompt);
    }
    std::vector<ParityGreedy> found = continued(state_, rows, steps, bounds, chosen);
    for (std::size_t place = 0; place < batch.size(); ++place) {
      found[place].mixed = true;
      proven_[batch[place]].report.greedy.push_back(std::move(found[place]));
    }
  }

  void run_mixed(const std::vector<MixedRow>& batch, const std::string& padding) {
    std::vector<ReferenceRow> rows;
    Chosen chosen{{}, true};
    std::map<std::size_t, std::vector<std::size_t>> own;
    for (const MixedRow& one : batch) {
      own[one.whose].push_back(rows.size());
      rows.push_back(proven_[one.whose].mixed_rows[one.place]);
      chosen.prompts.push_back(proven_[one.whose].prompt);
    }
    std::string stopped;
    const std::vector<Logits> got = logits_of(state_, rows, chosen, stopped);
    for (const auto& [whose, places] : own) {
      std::vector<ReferenceRow> wanted;
      std::vector<Logits> given;
      std::vector<OwnRow> alone;
      const Proven& proven = proven_[whose];
      for (std::size_t place : places) {
        wanted.push_back(rows[place]);
        given.push_back(got[place]);
        if (proven.bounds.own) alone.push_back(proven.own_rows[batch[place].place]);
      }
      ParityCase one = measured("mixed prompts, " + padding + "-padded", wanted, given,
                                proven.bounds);
      one.stopped = stopped;
      one.mixed = true;
      if (proven.bounds.own) {
        const std::vector<double> apart = add_own(one, given, alone);
        hold_to_own(one, *proven.bounds.own, proven.bounds.own_outputs, apart);
      }
      proven_[whose].report.cases.push_back(std::move(one));
    }
  }

  void conclude(ParityReport& one) const {
    one.failures = faults_of(one);
    one.engine_faults = one.failures.size();
    for (std::string& line : failures_of(one, state_.manifest()))
      one.failures.push_back(std::move(line));
    one.own_failures = one.failures.size();
    one.passed = one.failures.empty();
  }

  static void add(ParityReport& own, ParityReport other) {
    const std::string where =
        other.prompt.empty() ? "without a prompt" : "prompt " + detail::quoted(other.prompt);
    for (const std::string& line : other.failures) own.failures.push_back(where + ": " + line);
    own.passed = own.passed && other.passed;
    own.prompts.push_back(std::move(other));
  }

  const EngineState& state_;
  std::vector<Proven> proven_;
};

}  // namespace
}  // namespace detail

ParityReport Engine::verify() const {
  return detail::at_the_door([&] { return detail::BundleVerifier(*state_).report(); });
}

}  // namespace ptdeploy
