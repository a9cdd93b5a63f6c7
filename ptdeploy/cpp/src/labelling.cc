#include "labelling.hpp"

#include <algorithm>
#include <cmath>

#include "layout.hpp"
#include "rows.hpp"

namespace ptdeploy::detail {
namespace {

// No class of what is not finite is likeliest.
void check_finite(const float* logits, std::size_t count) {
  if (!std::all_of(logits, logits + count, [](float logit) { return std::isfinite(logit); }))
    throw EngineFault("The engine gave logits that are not finite.",
                      "Hold the bundle against its reference: ptdeploy verify BUNDLE");
}

void check_batch_size(std::size_t size) {
  if (size < 1 || size > static_cast<std::size_t>(kMost))
    throw InputError("batch_size is " + std::to_string(size) +
                     "; it must be a whole number from 1 to " + std::to_string(kMost) + ".");
}

// Runs rows as one right-padded batch; gives (rows, classes), or (rows, width, classes). `segments`
// are null for all 0.
std::vector<float> run_rows(const EngineState& state, std::size_t classes, bool takes_type_ids,
                            Batch& batch, const Ids* segments) {
  auto size = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  const std::vector<std::int64_t> shape{size(batch.rows), size(batch.width)};
  std::vector<std::int64_t> out_shape = shape, type_ids;
  if (state.kind().one_answer) out_shape.pop_back();
  out_shape.push_back(size(classes));
  std::size_t count = 1;
  for (std::int64_t axis : out_shape) count *= static_cast<std::size_t>(axis);
  std::vector<float> logits(count);
  std::vector<Bound> inputs{
      {"input_ids", ElementType::int64, shape, batch.input_ids.data(), false},
      {"attention_mask", ElementType::int64, shape, batch.attention_mask.data(), false}};
  if (takes_type_ids) {
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

}  // namespace

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

void require_classifier(const Manifest& manifest, const Shape& logits) {
  const Shape tokens{"batch", "sequence"};
  std::vector<Wanted> inputs{{"input_ids", "int64", tokens}, {"attention_mask", "int64", tokens}};
  if (manifest.inputs.size() >= 3) inputs.push_back({"token_type_ids", "int64", tokens});
  require_alike("inputs", manifest.inputs, inputs);
  require_alike("outputs", manifest.outputs, {{"logits", "float32", logits}});
  require(!manifest.labels.empty(), "labels are missing");
  if (const auto& shape = manifest.prompt.prefix_kv)
    require(shape->size() == 5 && (*shape)[1] == 2 &&
                (*shape)[3] == manifest.prompt.num_virtual_tokens,
            "prompt.prefix_kv is not the shape of a prefix KV");
}

Labelling::Labelling(const EngineState& state)
    : TaskEngine(state), classes_(state.manifest().labels.size()) {
  check_prompt(state.bundle);
  const auto& given = state.manifest().inputs;
  takes_type_ids_ = std::any_of(given.begin(), given.end(), [](const TensorSpec& spec) {
    return spec.name == "token_type_ids";
  });
}

std::vector<Logits> Labelling::logits(const std::vector<Ids>& rows,
                                      const std::vector<Ids>& segments) const {
  std::vector<Logits> out;
  in_batches(rows, segments, rows.size(), [&](const Ids& row, const float* logits) {
    const std::size_t count = state_.kind().positions(row.size());
    out.push_back({count, classes_, std::vector<float>(logits, logits + count * classes_)});
  });
  return out;
}

void Labelling::run(const std::vector<Ids>& rows, std::size_t batch_size,
                    const std::vector<Ids>& segments, const Take& take) const {
  check_batch_size(batch_size);
  check_rows(rows, state_.manifest().limits);
  check_segments(segments, rows, state_.manifest().limits);
  in_batches(rows, segments, batch_size, take);
}

void Labelling::in_batches(const std::vector<Ids>& rows, const std::vector<Ids>& segments,
                           std::size_t size, const Take& take) const {
  if (const auto& most = state_.info.max_batch)
    size = std::min(size, static_cast<std::size_t>(std::max<std::int64_t>(*most, 1)));
  size = std::max<std::size_t>(size, 1);
  for (std::size_t start = 0; start < rows.size(); start += size) {
    const std::size_t count = std::min(size, rows.size() - start);
    Batch batch = pack(rows.data() + start, count);
    const Ids* types = segments.empty() ? nullptr : segments.data() + start;
    const std::vector<float> logits = run_rows(state_, classes_, takes_type_ids_, batch, types);
    const std::size_t stride = logits.size() / count;
    for (std::size_t i = 0; i < count; ++i) take(rows[start + i], logits.data() + i * stride);
  }
}

}  // namespace ptdeploy::detail
