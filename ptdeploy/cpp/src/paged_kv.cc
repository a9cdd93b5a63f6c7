#include "paged_kv.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <set>

#include "memory.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::size_t kBlock = BlockCache::kBlock;

std::size_t blocks_of(std::size_t slots) { return (slots + kBlock - 1) / kBlock; }

bool is_key(std::size_t array) { return array % 2 == 0; }

std::int64_t size_of(std::size_t count) { return static_cast<std::int64_t>(count); }

// One pass over some rows' new tokens by the paged program's names, all but the caches. Of each row
// its tokens, how many are past, and its blocks; `sampled` are the tokens, counted through all rows,
// that logits are wanted of.
struct StepInputs {
  Ids ids, positions, sampled;
  std::vector<std::int32_t> past, begins{0}, blocks, block_begins{0};
  std::int32_t longest = 0;

  void add(const std::int64_t* tokens, std::size_t count, std::size_t filled,
           const std::vector<std::int32_t>& table) {
    const std::size_t end = filled + count;
    ids.insert(ids.end(), tokens, tokens + count);
    positions.resize(ids.size());
    std::iota(positions.end() - static_cast<std::ptrdiff_t>(count), positions.end(),
              size_of(filled));
    past.push_back(static_cast<std::int32_t>(filled));
    begins.push_back(static_cast<std::int32_t>(ids.size()));
    blocks.insert(blocks.end(), table.begin(),
                  table.begin() + static_cast<std::ptrdiff_t>(blocks_of(end)));
    block_begins.push_back(static_cast<std::int32_t>(blocks.size()));
    longest = std::max(longest, static_cast<std::int32_t>(end));
  }

  std::vector<Bound> bound(const KVLayout& layout) {
    auto whole = [](const std::string& name, Ids& values, bool column = false) {
      std::vector<std::int64_t> shape{size_of(values.size())};
      if (column) shape.push_back(1);
      return Bound{name, ElementType::int64, std::move(shape), values.data(), false};
    };
    auto half = [](const char* name, std::vector<std::int32_t>& values) {
      return Bound{name, ElementType::int32, {size_of(values.size())}, values.data(), false};
    };
    return {whole(layout.ids, ids, true),
            whole(layout.lengths, positions),
            whole("sampled", sampled),
            half("past_lens", past),
            half("subsequence_begins", begins),
            half("block_indices", blocks),
            half("block_indices_begins", block_begins),
            {"max_context_len", ElementType::int32, {}, &longest, false}};
  }
};

}  // namespace

PagedKV::PagedKV(Backend& backend, const KVLayout& layout, std::vector<RowPrompt> prompts,
                 SharedStack stack, std::size_t slots)
    : backend_(backend),
      layout_(layout),
      cache_(*backend.cache()),
      slots_(slots),
      prompts_(std::move(prompts)),
      stack_(std::move(stack)) {
  const std::size_t rows = prompts_.size(), layers = layout.past.size() / 2;
  lengths_.resize(rows);
  const std::string what = "The KV buffer for " + std::to_string(rows) + " rows of " +
                           std::to_string(slots_) + " tokens";
  try {
    blocks_ = blocks_for(prompts_);
    require_memory(product({layers, blocks_, cache_.bytes(true) + cache_.bytes(false)}) +
                       product({rows, layout.vocabulary, sizeof(float)}),
                   what);
    // The program takes their numbers in 32 bits.
    if (blocks_ > std::size_t{std::numeric_limits<std::int32_t>::max()}) throw std::bad_alloc();
    tables_ = arranged(prompts_);
    for (std::size_t array = 0; array < 2 * layers; ++array)
      arrays_.push_back(backend.place(blocks_ * cache_.bytes(is_key(array))));
  } catch (const std::bad_alloc&) {
    throw OutOfMemory(what + " does not fit in memory.",
                     "Send fewer rows at once, or ask for fewer tokens.");
  }
  fill();
}

std::size_t PagedKV::blocks_for(const std::vector<RowPrompt>& prompts) const {
  std::size_t shared = 0;
  for (const RowPrompt& prompt : std::set<RowPrompt>(prompts.begin(), prompts.end()))
    shared += prefix_of(prompt) / kBlock;
  std::size_t own = 0;
  for (const RowPrompt& prompt : prompts) own += blocks_of(slots_) - prefix_of(prompt) / kBlock;
  return shared + own;
}

std::vector<PagedKV::Table> PagedKV::arranged(const std::vector<RowPrompt>& prompts) const {
  const std::size_t needed = blocks_of(slots_);
  std::int32_t count = 0;
  std::map<RowPrompt, Table> shared;
  std::vector<Table> tables;
  auto extend = [&count](Table& table, std::size_t blocks) {
    for (; blocks > 0; --blocks) table.push_back(count++);
  };
  for (const RowPrompt& prompt : prompts) {
    const std::size_t full = prefix_of(prompt) / kBlock;
    const auto [place, is_new] = shared.emplace(prompt, Table());
    if (is_new) extend(place->second, full);
    tables.push_back(place->second);
    extend(tables.back(), needed - full);
  }
  return tables;
}

void PagedKV::fill() {
  std::set<RowPrompt> filled;
  for (std::size_t row = 0; row < rows(); ++row) {
    write(row, filled.insert(prompts_[row]).second ? 0 : start(row) / kBlock);
    lengths_[row] = start(row);
  }
}

void PagedKV::write(std::size_t row, std::size_t first) {
  const std::size_t tokens = start(row);
  if (tokens == 0) return;
  const std::size_t pitch = tokens * layout_.width;
  const float* part = prompts_[row]->tensors.prefix_kv.data();
  for (std::size_t array = 0; array < arrays_.size(); ++array, part += layout_.heads * pitch)
    for (std::size_t index = first; index < blocks_of(tokens); ++index)
      cache_.write(block(array, row, index), is_key(array), part + index * kBlock * layout_.width,
                   pitch, std::min(kBlock, tokens - index * kBlock));
}

char* PagedKV::block(std::size_t array, std::size_t row, std::size_t index) const {
  return arrays_[array].get() +
         static_cast<std::size_t>(tables_[row][index]) * cache_.bytes(is_key(array));
}

bool PagedKV::begin(const std::vector<RowPrompt>& prompts, SharedStack stack) {
  if (prompts == prompts_) {
    for (std::size_t row = 0; row < rows(); ++row) {
      lengths_[row] = start(row);
      if (cache_.changes_when_appended_to()) write(row, start(row) / kBlock);
    }
  } else {
    if (blocks_for(prompts) > blocks_) return false;
    tables_ = arranged(prompts);
    prompts_ = prompts;
    fill();
  }
  stack_ = std::move(stack);
  return true;
}

void PagedKV::cut(std::size_t row, std::size_t length) {
  lengths_[row] = std::min(lengths_[row], length);
}

std::vector<float> PagedKV::prefill(std::size_t row, const std::int64_t* ids, std::size_t count,
                                    bool every_position) {
  const std::size_t most = every_position ? layout_.kept : layout_.prefill;
  std::vector<float> kept;
  if (every_position) kept.reserve(product({count + 1, layout_.vocabulary}));
  for (std::size_t first = 0; first < count; first += most) {
    std::vector<float> logits =
        append({{row, ids + first, std::min(most, count - first)}}, every_position);
    if (every_position)
      kept.insert(kept.end(), logits.begin(), logits.end());
    else
      kept = std::move(logits);
  }
  return kept;
}

std::vector<std::vector<float>> PagedKV::prefill_all(const std::vector<Ids>& ids,
                                                     bool every_position) {
  std::vector<std::vector<float>> out(ids.size());
  if (every_position) {
    // All together would be many logits at once.
    for (std::size_t row = 0; row < ids.size(); ++row)
      out[row] = prefill(row, ids[row].data(), ids[row].size(), true);
    return out;
  }
  std::vector<std::size_t> done(ids.size());
  for (bool left = true; left;) {
    std::vector<Piece> pieces;
    std::size_t room = layout_.prefill;
    for (std::size_t row = 0; row < ids.size() && room > 0; ++row) {
      const std::size_t count = std::min(room, ids[row].size() - done[row]);
      if (count == 0) continue;
      pieces.push_back({row, ids[row].data() + done[row], count});
      room -= count;
    }
    left = !pieces.empty();
    if (!left) break;
    const std::vector<float> logits = append(pieces, false);
    const float* found = logits.data();
    for (const Piece& piece : pieces) {
      done[piece.row] += piece.count;
      out[piece.row].assign(found, found + layout_.vocabulary);
      found += layout_.vocabulary;
    }
  }
  return out;
}

const float* PagedKV::decode(const std::vector<std::int64_t>& tokens) {
  std::vector<Piece> pieces;
  for (std::size_t row = 0; row < rows(); ++row) pieces.push_back({row, &tokens[row], 1});
  logits_ = append(pieces, false);
  return logits_.data();
}

void PagedKV::copy_row(std::size_t row, const KVBuffer& source, std::size_t source_row,
                       std::size_t) {
  const auto& from = static_cast<const PagedKV&>(source);
  lengths_[row] = from.lengths_[source_row];
  // Whole blocks: full ones of the prompt both have already.
  for (std::size_t array = 0; array < arrays_.size(); ++array)
    for (std::size_t index = start(row) / kBlock; index < blocks_of(lengths_[row]); ++index)
      std::memcpy(block(array, row, index), from.block(array, source_row, index),
                  cache_.bytes(is_key(array)));
}

std::vector<float> PagedKV::append(const std::vector<Piece>& pieces, bool every_position) {
  StepInputs step;
  for (const Piece& piece : pieces) {
    step.add(piece.ids, piece.count, lengths_[piece.row], tables_[piece.row]);
    if (!every_position) step.sampled.push_back(size_of(step.ids.size()) - 1);
  }
  if (every_position) {
    step.sampled.resize(step.ids.size());
    std::iota(step.sampled.begin(), step.sampled.end(), 0);
  }
  std::vector<Bound> inputs = step.bound(layout_);
  inputs.insert(inputs.end(), stack_->bound().begin(), stack_->bound().end());
  for (std::size_t array = 0; array < arrays_.size(); ++array)
    inputs.push_back({(is_key(array) ? "key_cache." : "value_cache.") + std::to_string(array / 2),
                      cache_.type(), cache_.shape(is_key(array), blocks_), arrays_[array].get(),
                      true});
  const std::size_t sampled = step.sampled.size();
  std::vector<float> logits(sampled * layout_.vocabulary);
  const std::vector<Bound> outputs{{layout_.logits,
                                    ElementType::float32,
                                    {size_of(sampled), 1, size_of(layout_.vocabulary)},
                                    logits.data(),
                                    false}};
  (*backend_.bind(inputs, outputs))();
  for (const Piece& piece : pieces) lengths_[piece.row] += piece.count;
  is_sound_ = is_sound_ && std::all_of(logits.begin(), logits.end(),
                                       [](float value) { return std::isfinite(value); });
  return logits;
}

}  // namespace ptdeploy::detail
