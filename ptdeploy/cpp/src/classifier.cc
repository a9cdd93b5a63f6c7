// Classes for a text, or for each of its tokens.
#include <algorithm>
#include <cmath>

#include "engine_state.hpp"
#include "layout.hpp"
#include "rows.hpp"

namespace ptdeploy {
namespace detail {
namespace {

// No class of what is not finite is likeliest.
void check_finite(const float* logits, std::size_t count) {
  if (!std::all_of(logits, logits + count, [](float logit) { return std::isfinite(logit); }))
    throw EngineFault("The engine gave logits that are not finite.",
                      "Hold the bundle against its reference: ptdeploy verify BUNDLE");
}

std::vector<double> softmax(const float* logits, std::size_t count) {
  check_finite(logits, count);
  const double top = *std::max_element(logits, logits + count);
  std::vector<double> weights(count);
  double total = 0;
  for (std::size_t i = 0; i < count; ++i) total += weights[i] = std::exp(logits[i] - top);
  for (double& weight : weights) weight /= total;
  return weights;
}

std::vector<double> sigmoid(const float* logits, std::size_t count) {
  check_finite(logits, count);
  std::vector<double> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    // Whichever way, the exponential is of a number below 0.
    const double small = std::exp(-std::abs(static_cast<double>(logits[i])));
    out[i] = (logits[i] < 0 ? small : 1) / (1 + small);
  }
  return out;
}

std::size_t likeliest(const std::vector<double>& probabilities) {
  auto top = std::max_element(probabilities.begin(), probabilities.end());
  return static_cast<std::size_t>(top - probabilities.begin());
}

// Runs rows as one right-padded batch; gives (rows, classes), or (rows, width, classes). `segments`
// are null for all 0.
std::vector<float> run_rows(const EngineState& state, Batch& batch, const Ids* segments) {
  auto size = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  const std::vector<std::int64_t> shape{size(batch.rows), size(batch.width)};
  std::vector<std::int64_t> out_shape = shape, type_ids;
  if (state.info.task == Task::seq_cls) out_shape.pop_back();
  out_shape.push_back(size(state.classes));
  std::size_t count = 1;
  for (std::int64_t axis : out_shape) count *= static_cast<std::size_t>(axis);
  std::vector<float> logits(count);
  std::vector<Bound> inputs{
      {"input_ids", ElementType::int64, shape, batch.input_ids.data(), false},
      {"attention_mask", ElementType::int64, shape, batch.attention_mask.data(), false}};
  if (state.takes_type_ids) {
    if (segments)
      type_ids = pack(segments, batch.rows).input_ids;
    else
      type_ids.resize(batch.input_ids.size());
    inputs.push_back({"token_type_ids", ElementType::int64, shape, type_ids.data(), false});
  }
  auto run = state.backend->bind(
      inputs, {{"logits", ElementType::float32, out_shape, logits.data(), false}});
  (*run)();
  return logits;
}

// Rows in batches of `size`, or of as many as the engine takes; gives each row's logits to `take`,
// for TOKEN_CLS all its tokens'.
template <class Take>
void in_batches(const EngineState& state, const std::vector<Ids>& rows,
                const std::vector<Ids>& segments, std::size_t size, Take take) {
  if (const auto& most = state.info.max_batch)
    size = std::min(size, static_cast<std::size_t>(std::max<std::int64_t>(*most, 1)));
  size = std::max<std::size_t>(size, 1);
  for (std::size_t start = 0; start < rows.size(); start += size) {
    const std::size_t count = std::min(size, rows.size() - start);
    Batch batch = pack(rows.data() + start, count);
    const Ids* types = segments.empty() ? nullptr : segments.data() + start;
    const std::vector<float> logits = run_rows(state, batch, types);
    const std::size_t stride = logits.size() / count;
    for (std::size_t i = 0; i < count; ++i) take(rows[start + i], logits.data() + i * stride);
  }
}

void check_batch_size(std::size_t size) {
  if (size < 1 || size > static_cast<std::size_t>(kMost))
    throw InputError("batch_size is " + std::to_string(size) +
                     "; it must be a whole number from 1 to " + std::to_string(kMost) + ".");
}

}  // namespace

void prepare_classifier(EngineState& state) {
  const Manifest& manifest = state.manifest();
  state.classes = state.info.columns = manifest.labels.size();
}

std::vector<Logits> classifier_logits(const EngineState& state, const std::vector<Ids>& rows,
                                      const std::vector<Ids>& segments) {
  std::vector<Logits> out;
  in_batches(state, rows, segments, rows.size(), [&](const Ids& row, const float* logits) {
    const std::size_t count = state.info.task == Task::seq_cls ? 1 : row.size();
    out.push_back(
        {count, state.classes, std::vector<float>(logits, logits + count * state.classes)});
  });
  return out;
}

}  // namespace detail

std::vector<Classification> Engine::classify(const std::vector<Ids>& rows, std::size_t batch_size,
                                             const std::vector<Ids>& token_type_ids) const {
  detail::require_task(*state_, Task::seq_cls, "classify");
  const Head head = state_->info.head;
  if (head == Head::regression)
    throw InputError(state_->bundle.path + ": its head is a regression, and gives no classes.",
                     "Its logits are the values.");
  detail::check_batch_size(batch_size);
  detail::check_rows(rows, state_->manifest().limits);
  detail::check_segments(token_type_ids, rows, state_->manifest().limits);
  std::vector<Classification> out;
  detail::in_batches(*state_, rows, token_type_ids, batch_size, [&](const Ids&, const float* logits) {
    Classification one;
    one.probabilities = head == Head::sigmoid ? detail::sigmoid(logits, state_->classes)
                                              : detail::softmax(logits, state_->classes);
    one.index = detail::likeliest(one.probabilities);
    one.label = state_->info.labels[one.index];
    one.probability = one.probabilities[one.index];
    out.push_back(std::move(one));
  });
  return out;
}

std::vector<std::vector<TokenLabel>> Engine::tag(const std::vector<Ids>& rows,
                                                 std::size_t batch_size,
                                                 const std::vector<Ids>& token_type_ids) const {
  detail::require_task(*state_, Task::token_cls, "tag");
  detail::check_batch_size(batch_size);
  detail::check_rows(rows, state_->manifest().limits);
  detail::check_segments(token_type_ids, rows, state_->manifest().limits);
  std::vector<std::vector<TokenLabel>> out;
  detail::in_batches(*state_, rows, token_type_ids, batch_size, [&](const Ids& row, const float* logits) {
    std::vector<TokenLabel> labels;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const auto probabilities = detail::softmax(logits + i * state_->classes, state_->classes);
      const std::size_t index = detail::likeliest(probabilities);
      labels.push_back(
          {row[i], state_->info.labels[index], index, probabilities[index], probabilities});
    }
    out.push_back(std::move(labels));
  });
  return out;
}

}  // namespace ptdeploy
