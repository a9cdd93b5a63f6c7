#include "kv_buffer.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

namespace ptdeploy::detail {
namespace {

std::size_t product(std::initializer_list<std::size_t> sizes) {
  std::size_t result = 1;
  for (std::size_t size : sizes) {
    if (size > 0 && result > std::numeric_limits<std::size_t>::max() / sizeof(float) / size)
      throw std::bad_alloc();
    result *= size;
  }
  return result;
}

}  // namespace

Zeros::Zeros(std::size_t count)
    : data_(static_cast<float*>(std::calloc(std::max<std::size_t>(count, 1), sizeof(float)))) {
  if (!data_) throw std::bad_alloc();
}

KVBuffer::KVBuffer(Backend& backend, const KVLayout& layout, std::size_t rows, std::size_t slots)
    : backend_(backend), layout_(layout), slots_(layout.fixed_slots ? layout.fixed_slots : slots) {
  try {
    for (std::size_t i = 0; i < layout.past.size(); ++i)
      arrays_.emplace_back(product({rows, layout.heads, slots_, layout.width}));
    logits_.resize(product({rows, layout.vocabulary}));
  } catch (const std::bad_alloc&) {
    throw InputError("The KV buffer for " + std::to_string(rows) + " rows of " +
                         std::to_string(slots_) + " tokens does not fit in memory.",
                     "Send fewer rows at once, or ask for fewer tokens.");
  }
  if (const FloatTensor* prefix = layout.prefix_kv) {
    prefix_ = static_cast<std::size_t>(prefix->shape[3]);
    const std::size_t count = prefix_ * layout.width;
    for (std::size_t array = 0; array < arrays_.size(); ++array)
      for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t head = 0; head < layout.heads; ++head) {
          const float* from = prefix->values.data() + (array * layout.heads + head) * count;
          std::copy(from, from + count, slot(array, row, head, 0));
        }
  }
  lengths_.assign(rows, static_cast<std::int64_t>(prefix_));
  ids_.assign(rows, 0);
  decode_ = bind(0, rows, ids_.data(), 1, positions_, logits_.data());
}

float* KVBuffer::slot(std::size_t array, std::size_t row, std::size_t head,
                      std::size_t slot) const {
  return arrays_[array].data() + ((row * layout_.heads + head) * slots_ + slot) * layout_.width;
}

void KVBuffer::reset() {
  std::fill(lengths_.begin(), lengths_.end(), static_cast<std::int64_t>(prefix_));
}

void KVBuffer::cut(std::size_t row, std::size_t length) {
  lengths_[row] = std::min(lengths_[row], static_cast<std::int64_t>(length));
}

std::vector<float> KVBuffer::prefill(std::size_t row, const std::int64_t* ids, std::size_t count,
                                     bool every_position) {
  const std::size_t vocabulary = layout_.vocabulary;
  std::vector<float> kept(every_position ? product({count, vocabulary}) : vocabulary);
  for (std::size_t start = 0; start < count; start += layout_.prefill) {
    std::vector<std::int64_t> piece(ids + start, ids + std::min(count, start + layout_.prefill));
    const std::size_t first = every_position ? 0 : piece.size() - 1;
    std::vector<std::int64_t> positions(piece.size() - first);
    std::iota(positions.begin(), positions.end(), static_cast<std::int64_t>(first));
    float* logits = kept.data() + (every_position ? start * vocabulary : 0);
    Step step = bind(row, 1, piece.data(), piece.size(), positions, logits);
    run(step);
    lengths_[row] += static_cast<std::int64_t>(piece.size());
  }
  return kept;
}

const float* KVBuffer::decode(const std::vector<std::int64_t>& tokens) {
  std::copy(tokens.begin(), tokens.end(), ids_.begin());
  run(decode_);
  for (std::int64_t& length : lengths_) ++length;
  return logits_.data();
}

void KVBuffer::copy_row(std::size_t row, const KVBuffer& source, std::size_t source_row,
                        std::size_t first_slot) {
  const std::size_t length = source.length(source_row);
  for (std::size_t array = 0; array < arrays_.size(); ++array)
    for (std::size_t head = 0; head < layout_.heads; ++head)
      std::copy(source.slot(array, source_row, head, first_slot),
                source.slot(array, source_row, head, std::max(first_slot, length)),
                slot(array, row, head, first_slot));
  lengths_[row] = source.lengths_[source_row];
}

KVBuffer::Step KVBuffer::bind(std::size_t row, std::size_t rows, std::int64_t* ids, std::size_t fed,
                              std::vector<std::int64_t>& positions, float* logits) {
  auto size = [](std::size_t n) { return static_cast<std::int64_t>(n); };
  Step step{row, rows, fed, {}, nullptr};
  std::vector<Bound> inputs{
      {"input_ids", ElementType::int64, {size(rows), size(fed)}, ids},
      {"past_lengths", ElementType::int64, {size(rows)}, lengths_.data() + row},
      {"logits_positions", ElementType::int64, {size(positions.size())}, positions.data()}};
  std::vector<Bound> outputs{{"logits",
                              ElementType::float32,
                              {size(rows), size(positions.size()), size(layout_.vocabulary)},
                              logits}};
  for (std::size_t array = 0; array < arrays_.size(); ++array) {
    std::vector<std::int64_t> shape{size(rows), size(layout_.heads), size(slots_),
                                    size(layout_.width)};
    float* data = slot(array, row, 0, 0);
    inputs.push_back({layout_.past[array], ElementType::float32, shape, data});
    if (!layout_.in_place) {
      shape[2] = size(fed);
      step.fresh.emplace_back(product({rows, layout_.heads, fed, layout_.width}));
      data = step.fresh.back().data();
    }
    outputs.push_back({layout_.present[array], ElementType::float32, shape, data});
  }
  step.run = backend_.bind(inputs, outputs);
  return step;
}

void KVBuffer::run(Step& step) {
  (*step.run)();
  const std::size_t count = step.fed * layout_.width;
  for (std::size_t array = 0; array < step.fresh.size(); ++array) {
    const float* from = step.fresh[array].data();
    for (std::size_t row = step.row; row < step.row + step.rows; ++row)
      for (std::size_t head = 0; head < layout_.heads; ++head, from += count)
        std::copy(from, from + count, slot(array, row, head, length(row)));
  }
}

}  // namespace ptdeploy::detail
