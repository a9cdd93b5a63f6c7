#include "kv_buffers.hpp"

#include <algorithm>

#include "rows.hpp"

namespace ptdeploy::detail {
namespace {

// Buffers of nearly the same size are kept for one another.
constexpr std::size_t kSlots = 64;
// A buffer of more than so many times the slots that a request needs is not kept for it.
constexpr std::size_t kMostSpare = 2;

// How many slots the longest row fills, with its own prompt.
std::size_t slots_of(const std::vector<RowPrompt>& prompts, const std::vector<std::size_t>& tokens) {
  std::size_t most = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i)
    most = std::max(most, length_of(prompts[i]) + tokens[i]);
  return most;
}

}  // namespace

Ids StartedRows::fed(std::size_t row, const Ids& ids) const {
  Ids fed = before(row);
  fed.insert(fed.end(), ids.begin(), ids.end());
  return fed;
}

KVBuffers::KVBuffers(Backend& backend, const KVLayout& layout, const Limits& limits,
                     const PromptInputs& inputs)
    : backend_(backend), layout_(layout), limits_(limits), inputs_(inputs) {}

StartedRows KVBuffers::take(const std::vector<RowPrompt>& prompts,
                            const std::vector<std::size_t>& tokens) const {
  const std::size_t rows = prompts.size();
  check_row_count(rows, limits_.max_batch);
  SharedStack stack = inputs_.stack(prompts);
  const std::size_t needed = slots_of(prompts, tokens);
  const std::size_t slots = std::min((needed + kSlots - 1) / kSlots * kSlots,
                                     static_cast<std::size_t>(limits_.max_context));
  std::unique_ptr<KVBuffer> spare = take_spare();
  // A much larger one would hold its memory, and where slots are read under a mask cost time.
  const bool fits = spare && spare->rows() == rows && needed <= spare->slots() &&
                    spare->slots() <= kMostSpare * slots;
  if (fits && spare->begin(prompts, stack)) return {std::move(spare), prompts, std::move(stack)};
  spare.reset();  // before the new one: they need not fit in memory together
  return {make_kv_buffer(backend_, layout_, prompts, stack, slots), prompts, stack};
}

std::unique_ptr<KVBuffer> KVBuffers::take_spare() const {
  std::lock_guard<std::mutex> lock(lock_);
  return std::exchange(spare_, {}).kv;
}

void KVBuffers::keep(StartedRows rows) const {
  if (!rows.kv->is_sound()) return;
  std::lock_guard<std::mutex> lock(lock_);
  std::swap(spare_, rows);
}

void KVBuffers::forget(const RowPrompt& prompt) const {
  StartedRows gone;
  std::lock_guard<std::mutex> lock(lock_);
  const std::vector<RowPrompt>& held = spare_.prompts;
  if (std::find(held.begin(), held.end(), prompt) != held.end()) std::swap(spare_, gone);
}

StartedRows KVBuffers::own(const RowPrompt& prompt, std::size_t tokens) const {
  return own(prompt, tokens, inputs_.stack({prompt}));
}

StartedRows KVBuffers::own(const RowPrompt& prompt, std::size_t tokens, SharedStack stack) const {
  const std::vector<RowPrompt> prompts{prompt};
  auto kv = make_kv_buffer(backend_, layout_, prompts, stack, slots_of(prompts, {tokens}));
  return {std::move(kv), prompts, std::move(stack)};
}

}  // namespace ptdeploy::detail
