#include "dense_kv.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <new>
#include <numeric>

#include "joined.hpp"
#include "memory.hpp"

namespace ptdeploy::detail {
namespace {

bool all_finite(const float* values, std::size_t count) {
  return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

}  // namespace

DenseKV::DenseKV(Backend& backend, const KVLayout& layout, std::vector<RowPrompt> prompts,
                   SharedStack stack, std::size_t slots)
    : backend_(backend),
      layout_(layout),
      slots_(layout.fixed_slots ? layout.fixed_slots : slots),
      line_(layout.width * bytes_of(layout.type)),
      pitch_(slots_ * line_),
      prompts_(std::move(prompts)),
      stack_(std::move(stack)) {
  const std::size_t rows = prompts_.size();
  lengths_.resize(rows);
  ids_.assign(rows, 0);
  try {
    const std::size_t bytes = product({rows, layout.heads, slots_, line_});
    if (backend.in_host_memory())
      require_memory(product({layout.past.size(), bytes}) +
                         product({rows, layout.vocabulary, sizeof(float)}),
                     "The KV buffer for " + std::to_string(rows) + " rows of " +
                         std::to_string(slots_) + " tokens");
    for (std::size_t i = 0; i < layout.past.size(); ++i) arrays_.push_back(backend.place(bytes));
    logits_.resize(product({rows, layout.vocabulary, sizeof(float)}) / sizeof(float));
    for (std::size_t row = 0; row < rows; ++row) fill_prefix(row, 0);
    decode_ = bound_decode();
  } catch (const std::bad_alloc&) {
    throw OutOfMemory("The KV buffer for " + std::to_string(rows) + " rows of " +
                         std::to_string(slots_) + " tokens does not fit in memory.",
                     "Send fewer rows at once, or ask for fewer tokens.");
  }
}

void DenseKV::fill_prefix(std::size_t row, std::size_t before) {
  const std::size_t own = start(row), slots = std::max(own, before);
  lengths_[row] = static_cast<std::int64_t>(own);
  if (slots == 0) return;
  const std::size_t bytes = own * line_, rest = (slots - own) * line_;
  std::vector<char> made;
  const char* values = nullptr;
  if (own > 0) {
    const std::vector<float>& prefix_kv = prompts_[row]->tensors.prefix_kv;
    if (layout_.type != ElementType::float32) made = rounded(prefix_kv, layout_.type);
    values = made.empty() ? reinterpret_cast<const char*>(prefix_kv.data()) : made.data();
  }
  // A mask hides no infinity: what the longer one left is overwritten.
  const std::vector<char> zeros(layout_.heads * rest);
  std::vector<LineCopy> copies;
  for (std::size_t array = 0; array < arrays_.size(); ++array) {
    if (own > 0)
      copies.push_back({slot(array, row, 0), pitch_, values + array * layout_.heads * bytes, bytes,
                        bytes, layout_.heads});
    if (rest > 0)
      copies.push_back({slot(array, row, own), pitch_, zeros.data(), rest, rest, layout_.heads});
  }
  backend_.copy(copies);
}

DenseKV::Step DenseKV::bound_decode() {
  return bind(0, rows(), ids_.data(), 1, positions_, offsets_, logits_.data());
}

bool DenseKV::is_sound() const {
  return prefilled_well_ && all_finite(logits_.data(), logits_.size());
}

bool DenseKV::begin(const std::vector<RowPrompt>& prompts, SharedStack stack) {
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    const std::size_t before = start(row);
    lengths_[row] = static_cast<std::int64_t>(before);
    if (prompts[row] == prompts_[row]) continue;
    prompts_[row] = prompts[row];
    fill_prefix(row, before);
  }
  // The decode step is bound to what the old stack placed, which ends after it.
  std::swap(stack_, stack);
  if (!stack_->bound().empty() && stack_ != stack) decode_ = bound_decode();
  return true;
}

char* DenseKV::slot(std::size_t array, std::size_t row, std::size_t slot) const {
  return arrays_[array].get() + row * layout_.heads * pitch_ + slot * line_;
}

void DenseKV::cut(std::size_t row, std::size_t length) {
  lengths_[row] = std::min(lengths_[row], static_cast<std::int64_t>(length));
}

std::vector<float> DenseKV::prefill(std::size_t row, const std::int64_t* ids, std::size_t count,
                                     bool every_position) {
  const std::size_t vocabulary = layout_.vocabulary;
  std::vector<float> kept;
  if (every_position) kept.reserve(product({count + 1, vocabulary}));
  kept.resize(every_position ? count * vocabulary : vocabulary);
  const std::size_t most = every_position ? layout_.kept : layout_.prefill;
  for (std::size_t start = 0; start < count; start += most) {
    std::vector<std::int64_t> piece(ids + start, ids + std::min(count, start + most));
    const std::size_t first = every_position ? 0 : piece.size() - 1;
    std::vector<std::int64_t> positions(piece.size() - first);
    std::iota(positions.begin(), positions.end(), static_cast<std::int64_t>(first));
    float* logits = kept.data() + (every_position ? start * vocabulary : 0);
    Offsets offsets(piece.size());
    Step step = bind(row, 1, piece.data(), piece.size(), positions, offsets, logits);
    run(step);
    lengths_[row] += static_cast<std::int64_t>(piece.size());
    prefilled_well_ =
        prefilled_well_ && all_finite(logits + (positions.size() - 1) * vocabulary, vocabulary);
  }
  return kept;
}

std::vector<std::vector<float>> DenseKV::prefill_all(const std::vector<Ids>& ids,
                                                     bool every_position) {
  std::vector<Coming> rows;
  for (std::size_t row = 0; row < ids.size(); ++row)
    rows.push_back({ids[row].size(), prompts_[row].get(), start(row)});
  // Where rows may not come as one sequence, none has room for another.
  const Room room{layout_.offsets.empty() ? 0 : layout_.context,
                  every_position ? layout_.kept : layout_.prefill, layout_.mixes};
  std::vector<std::vector<float>> out(ids.size());
  for (const std::vector<std::size_t>& group : joined(rows, room)) {
    // No mask hides a number that is none: the rows beside such a one are run without it.
    if (group.size() > 1 && prefill_joined(group, ids, every_position, out)) continue;
    for (const std::size_t row : group)
      out[row] = prefill(row, ids[row].data(), ids[row].size(), every_position);
  }
  return out;
}

bool DenseKV::prefill_joined(const std::vector<std::size_t>& rows, const std::vector<Ids>& ids,
                             bool every_position, std::vector<std::vector<float>>& out) {
  const std::size_t vocabulary = layout_.vocabulary;
  std::map<RowPrompt, std::size_t> firsts;  // at which slot each prompt's prefix KV is
  std::vector<std::size_t> holders;
  std::size_t past = 0, count = 0;
  for (const std::size_t row : rows) {
    count += ids[row].size();
    if (!firsts.emplace(prompts_[row], past).second) continue;
    holders.push_back(row);
    past += start(row);
  }
  // Without a past attention takes only the first token's position: there is a slot which no row sees.
  past = std::max<std::size_t>(past, 1);
  std::vector<std::int64_t> tokens, positions;
  Offsets offsets(count);
  for (const std::size_t row : rows) {
    const std::size_t first = firsts.at(prompts_[row]);
    for (std::size_t at = 0; at < ids[row].size(); ++at) {
      if (every_position || at + 1 == ids[row].size())
        positions.push_back(static_cast<std::int64_t>(tokens.size()));
      offsets.set(tokens.size(), at, first, past - first - start(row));
      tokens.push_back(ids[row][at]);
    }
  }
  DenseKV whole(backend_, layout_, {nullptr}, stack_, past + count);
  for (const std::size_t row : holders)
    if (start(row) > 0) whole.copy_slots(0, firsts.at(prompts_[row]), *this, row, 0, start(row));
  whole.lengths_[0] = static_cast<std::int64_t>(past);
  std::vector<float> logits(product({positions.size(), vocabulary}));
  Step step = whole.bind(0, 1, tokens.data(), tokens.size(), positions, offsets, logits.data());
  whole.run(step);
  if (!all_finite(logits.data(), logits.size())) return false;
  std::size_t slot = past;
  const float* found = logits.data();
  for (const std::size_t row : rows) {
    const std::size_t kept = (every_position ? ids[row].size() : 1) * vocabulary;
    if (every_position) out[row].reserve(kept + vocabulary);
    out[row].assign(found, found + kept);
    found += kept;
    copy_slots(row, start(row), whole, 0, slot, ids[row].size());
    lengths_[row] += static_cast<std::int64_t>(ids[row].size());
    slot += ids[row].size();
  }
  return true;
}

const float* DenseKV::decode(const std::vector<std::int64_t>& tokens) {
  std::copy(tokens.begin(), tokens.end(), ids_.begin());
  run(decode_);
  for (std::int64_t& length : lengths_) ++length;
  return logits_.data();
}

void DenseKV::copy_row(std::size_t row, const KVBuffer& other, std::size_t source_row,
                       std::size_t first_slot) {
  const auto& source = static_cast<const DenseKV&>(other);
  const std::size_t length = source.length(source_row);
  lengths_[row] = source.lengths_[source_row];
  if (length > first_slot)
    copy_slots(row, first_slot, source, source_row, first_slot, length - first_slot);
}

void DenseKV::copy_slots(std::size_t row, std::size_t at, const DenseKV& source,
                         std::size_t source_row, std::size_t first, std::size_t count) {
  std::vector<LineCopy> copies;
  for (std::size_t array = 0; array < arrays_.size(); ++array)
    copies.push_back({slot(array, row, at), pitch_, source.slot(array, source_row, first),
                      source.pitch_, count * line_, layout_.heads});
  backend_.copy(copies);
}

DenseKV::Step DenseKV::bind(std::size_t row, std::size_t rows, std::int64_t* ids, std::size_t fed,
                              std::vector<std::int64_t>& positions,
                              Offsets& offsets, float* logits) {
  auto size = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  Step step{row, rows, fed, {}, nullptr};
  std::vector<Bound> inputs{
      {layout_.ids, ElementType::int64, {size(rows), size(fed)}, ids, false},
      {layout_.lengths, ElementType::int64, {size(rows)}, lengths_.data() + row, false},
      {layout_.positions, ElementType::int64, {size(positions.size())}, positions.data(), false}};
  if (!layout_.offsets.empty()) {
    std::vector<std::int64_t> shape{size(fed)};
    if (layout_.mixes) shape.insert(shape.begin(), size(Offsets::kParts));
    inputs.push_back({layout_.offsets, ElementType::int64, shape, offsets.data(), false});
  }
  inputs.insert(inputs.end(), stack_->bound().begin(), stack_->bound().end());
  std::vector<Bound> outputs{{layout_.logits,
                              ElementType::float32,
                              {size(rows), size(positions.size()), size(layout_.vocabulary)},
                              logits,
                              false}};
  for (std::size_t array = 0; array < arrays_.size(); ++array) {
    std::vector<std::int64_t> shape{size(rows), size(layout_.heads), size(slots_),
                                    size(layout_.width)};
    char* data = slot(array, row, 0);
    inputs.push_back({layout_.past[array], layout_.type, shape, data, true});
    if (!layout_.in_place) {
      shape[2] = size(fed);
      step.fresh.push_back(backend_.place(product({rows, layout_.heads, fed, line_})));
      data = step.fresh.back().get();
    }
    outputs.push_back({layout_.present[array], layout_.type, shape, data, true});
  }
  step.run = backend_.bind(inputs, outputs);
  return step;
}

void DenseKV::run(Step& step) {
  (*step.run)();
  if (step.fresh.empty()) return;
  const std::size_t count = step.fed * line_;
  std::vector<LineCopy> copies;
  for (std::size_t array = 0; array < step.fresh.size(); ++array) {
    const char* from = step.fresh[array].get();
    for (std::size_t row = step.row; row < step.row + step.rows; ++row) {
      copies.push_back({slot(array, row, length(row)), pitch_, from, count, count, layout_.heads});
      from += layout_.heads * count;
    }
  }
  backend_.copy(copies);
}

}  // namespace ptdeploy::detail
