// verify(): an open engine against the bundle's stored reference.
#include <algorithm>
#include <cmath>
#include <limits>

#include "failures.hpp"
#include "quality.hpp"

namespace ptdeploy {
namespace detail {
namespace {

class Verifier {
 public:
  Verifier(const Engine& engine, const EngineState& state, const std::string& file)
      : engine_(engine),
        state_(state),
        reference_(file, state),
        allowed_(reference_.metadata().thresholds.max_abs +
                 reference_.metadata().thresholds.relative * largest_logit()) {}

  ParityReport report() {
    ParityReport out;
    const Manifest& manifest = state_.manifest();
    out.reference = reference_.metadata().made_by;
    if (!manifest.quantization) out.largest_allowed = allowed_;
    for (const BatchCase& one : reference_.cases()) out.cases.push_back(compare(one));
    if (state_.kind().writes) out.greedy = compare_greedy();
    if (manifest.quantization)
      out.quality = evaluate(reference_, state_.info, *manifest.quantization,
                             [this](const std::vector<Ids>& rows, const std::vector<Ids>& types) {
                               std::string stopped;
                               return logits(rows, types, stopped);
                             });
    if (!state_.bundle.file("tokenizer").empty())
      out.texts_not_compared = reference_.metadata().texts;
    out.notes = notes(out.quality, out.texts_not_compared);
    const std::vector<std::string> faults = faults_of(out);
    out.engine_faults = faults.size();
    out.failures = faults;
    for (std::string& line : failures_of(out, manifest)) out.failures.push_back(std::move(line));
    out.passed = out.failures.empty();
    return out;
  }

 private:
  double largest_logit() {
    double largest = 0;
    for (std::size_t i = 0; i < reference_.metadata().rows; ++i)
      for (float value : reference_.row(i).logits.values)
        largest = std::max(largest, std::abs(static_cast<double>(value)));
    return largest;
  }

  // Where the engine fails on rows that it must take they are NaN, and `stopped` says why.
  std::vector<Logits> logits(const std::vector<Ids>& rows, const std::vector<Ids>& types,
                             std::string& stopped) const {
    try {
      return engine_.logits(rows, types);
    } catch (const EngineFault& error) {
      stopped = error.problem();
    }
    std::vector<Logits> none;
    const std::size_t columns = state_.info.columns;
    for (const Ids& row : rows) {
      const std::size_t count = state_.kind().positions(row.size());
      none.push_back(
          {count, columns,
           std::vector<float>(count * columns, std::numeric_limits<float>::quiet_NaN())});
    }
    return none;
  }

  ParityCase compare(const BatchCase& one) {
    ParityCase out;
    out.name = one.name;
    std::vector<ReferenceRow> wanted;
    std::vector<Ids> rows, types;
    bool segments = false;
    for (std::size_t index : one.rows) {
      wanted.push_back(reference_.row(index));
      const ReferenceRow& row = wanted.back();
      rows.push_back(row.ids);
      types.push_back(row.type_ids.empty() ? Ids(row.ids.size()) : row.type_ids);
      segments = segments || !row.type_ids.empty();
      out.lengths.push_back(row.ids.size());
    }
    if (!segments) types.clear();
    const std::vector<Logits> got = logits(rows, types, out.stopped);
    Measure measure(allowed_);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      const Logits& want = wanted[i].logits;
      // The reference has the last positions of a row.
      const std::size_t skipped = got[i].rows - want.rows;
      for (std::size_t at = 0; at < want.rows; ++at)
        measure.add(want.row(at), got[i].row(skipped + at), want.columns);
    }
    const Measured found = measure.result();
    out.max_abs = found.max_abs;
    out.mean_abs = found.mean_abs;
    out.cosine = found.cosine;
    out.kl = found.kl;
    out.top1_agreement = found.top1_agreement;
    out.passed = within(found, reference_.metadata().thresholds, allowed_);
    return out;
  }

  // In batches of unequal rows, so that batching is compared too; as many steps as all have.
  std::vector<ParityGreedy> compare_greedy() {
    std::vector<ReferenceGreedy> wanted;
    std::size_t steps = std::numeric_limits<std::size_t>::max();
    for (std::size_t i = 0; i < reference_.metadata().greedy; ++i) {
      wanted.push_back(reference_.greedy(i));
      steps = std::min(steps, wanted.back().tokens.size());
    }
    const std::int64_t bound = state_.manifest().limits.max_batch.value_or(0);
    const std::size_t most =
        bound > 0 ? static_cast<std::size_t>(bound) : std::max<std::size_t>(wanted.size(), 1);
    std::vector<ParityGreedy> out;
    for (std::size_t start = 0; start < wanted.size(); start += most) {
      const std::size_t end = std::min(wanted.size(), start + most);
      std::vector<Ids> rows;
      for (std::size_t i = start; i < end; ++i) rows.push_back(wanted[i].ids);
      std::string stopped;
      const std::vector<Ids> tokens = continued(rows, steps, stopped);
      for (std::size_t i = start; i < end; ++i) {
        out.push_back(compare_tokens(wanted[i], tokens[i - start], steps));
        out.back().stopped = stopped;
        out.back().passed = out.back().passed && stopped.empty();
      }
    }
    return out;
  }

  std::vector<Ids> continued(const std::vector<Ids>& rows, std::size_t steps,
                             std::string& stopped) const {
    GenerateOptions options;
    options.max_new_tokens = static_cast<std::int64_t>(steps);
    options.do_sample = false;
    options.min_new_tokens = 0;
    options.repetition_penalty = 1;
    options.eos_token_ids.emplace();
    std::vector<Ids> out;
    try {
      for (Generated& row : engine_.generate(rows, options))
        out.push_back(std::move(row.token_ids));
    } catch (const EngineFault& error) {
      stopped = error.problem();
      out.assign(rows.size(), Ids(steps, -1));
    }
    return out;
  }

  ParityGreedy compare_tokens(const ReferenceGreedy& want, const Ids& got,
                              std::size_t steps) const {
    ParityGreedy out;
    out.length = want.ids.size();
    out.total = steps;
    while (out.agreed < steps && want.tokens[out.agreed] == got[out.agreed]) ++out.agreed;
    // Where the reference's own best two lie that near, either token is as right.
    out.passed = out.agreed == steps || want.margins[out.agreed] <= 2 * allowed_;
    return out;
  }

  std::vector<std::string> notes(const std::optional<ParityQuality>& quality,
                                 std::size_t texts) const {
    std::vector<std::string> out;
    const auto& mismatch = reference_.metadata().padded_mismatch;
    if (mismatch && *mismatch > allowed_)
      out.push_back("PEFT's own left-padded batch does not match its rows alone, by " +
                    formatted(*mismatch, 2, 'g') + "; the reference here is each row alone.");
    if (quality)
      for (std::string& note : quality_notes(*quality)) out.push_back(std::move(note));
    if (texts > 0)
      out.push_back("the tokenizer was not compared (" + std::to_string(texts) +
                    " texts): the C++ library has none. Python's ptdeploy verify compares it.");
    return out;
  }

  const Engine& engine_;
  const EngineState& state_;
  Reference reference_;
  double allowed_;
};

}  // namespace
}  // namespace detail

ParityReport Engine::verify() const {
  const std::string file = state_->bundle.file("reference");
  if (file.empty())
    throw InputError(state_->bundle.path + ": holds no stored reference.",
                     "Compile the checkpoint again, or compare with it in Python: ptdeploy verify "
                     "BUNDLE --checkpoint CHECKPOINT");
  return state_->bundle.reading("reference", [this](const std::string& path) {
    return detail::Verifier(*this, *state_, path).report();
  });
}

}  // namespace ptdeploy
