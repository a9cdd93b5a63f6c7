#include "prompt_inputs.hpp"

#include <algorithm>
#include <numeric>

namespace ptdeploy::detail {
namespace {

std::int64_t signed_size(std::size_t size) { return static_cast<std::int64_t>(size); }

// A part of shape (outer, own, inner) in zeros of (outer, most, inner), behind what `out` holds.
void append_grown(std::vector<float>& out, const std::vector<float>& part, std::size_t outer,
                  std::size_t own, std::size_t most, std::size_t inner) {
  const std::size_t line = own * inner;
  for (std::size_t i = 0; i < outer; ++i) {
    const auto from = part.begin() + static_cast<std::ptrdiff_t>(i * line);
    out.insert(out.end(), from, from + static_cast<std::ptrdiff_t>(line));
    out.resize(out.size() + (most - own) * inner);
  }
}

std::size_t product(Sizes::const_iterator first, Sizes::const_iterator last) {
  return std::accumulate(first, last, std::size_t{1}, [](std::size_t all, std::int64_t size) {
    return all * static_cast<std::size_t>(size);
  });
}

}  // namespace

PromptStack::PromptStack(Backend& backend, const Graph& graph, std::int64_t vocabulary,
                         std::vector<RowPrompt> prompts)
    : prompts_(std::move(prompts)) {
  for (const TensorSpec& spec : graph.inputs) {
    if (spec.role == TensorRole::table) add_table(backend, spec);
    if (spec.role == TensorRole::prefix) add_prefix(backend, spec);
    if (spec.role == TensorRole::head) add_head(backend, spec);
  }
  if (!graph.input(TensorRole::table)) return;
  for (const RowPrompt& prompt : prompts_) {
    if (prompt->tensors.virtual_tokens.empty()) continue;
    Ids& ids = ids_[prompt.get()];
    ids.resize(prompt->length());
    std::iota(ids.begin(), ids.end(), vocabulary);
    vocabulary += prompt->info.num_virtual_tokens;
  }
}

void PromptStack::add_table(Backend& backend, const TensorSpec& spec) {
  std::vector<float> table;
  for (const RowPrompt& prompt : prompts_)
    table.insert(table.end(), prompt->tensors.virtual_tokens.begin(),
                 prompt->tensors.virtual_tokens.end());
  const std::int64_t width = std::get<std::int64_t>(spec.shape[1]);
  // An engine may refuse a table without a line, though nobody looks into it.
  if (table.empty()) table.resize(static_cast<std::size_t>(width));
  add(backend, spec, {signed_size(table.size()) / width, width}, table);
}

// Layers of all prompts one behind the other, or prompt by prompt in a graph that takes virtual tokens
// too, where the prompts that have a prefix KV are the first.
void PromptStack::add_prefix(Backend& backend, const TensorSpec& spec) {
  std::vector<const LoadedPrompt*> own;
  for (const RowPrompt& prompt : prompts_)
    if (prompt->info.prefix_kv) own.push_back(prompt.get());
  std::size_t most = 0;
  for (const LoadedPrompt* prompt : own) most = std::max(most, prompt->length());
  std::vector<float> values;
  Sizes shape{0, 1, signed_size(most), 1};
  for (const LoadedPrompt* prompt : own) {
    const Sizes& kv = *prompt->info.prefix_kv;  // (layers, 2, heads, virtual tokens, width)
    append_grown(values, prompt->tensors.prefix_kv, product(kv.begin(), kv.begin() + 3),
                 prompt->length(), most, static_cast<std::size_t>(kv[4]));
    shape = {shape[0] + kv[0] * kv[1], kv[2], shape[2], kv[4]};
  }
  if (spec.shape.size() == 5) {
    auto axis = [&spec](std::size_t i) { return std::get<std::int64_t>(spec.shape[i]); };
    shape = {signed_size(own.size()), axis(1), axis(2), signed_size(most), axis(4)};
    if (own.empty()) {
      // No row sees it, and an engine may refuse what is empty.
      shape[0] = shape[3] = 1;
      values.resize(product(shape.begin(), shape.end()));
    }
  }
  add(backend, spec, std::move(shape), values);
}

void PromptStack::add_head(Backend& backend, const TensorSpec& spec) {
  const auto classes = std::find(spec.shape.begin(), spec.shape.end(), Axis("classes"));
  const bool grows = classes != spec.shape.end();
  const auto axis = grows ? classes - spec.shape.begin() - 1 : 0;  // of one prompt's part
  std::vector<float> values;
  Sizes shape;
  for (const RowPrompt& prompt : prompts_) {
    const std::vector<float>& part = prompt->tensors.head.at(spec.name);
    const Sizes own = head_part(spec, prompt->info);
    shape = own;
    if (!grows) {
      values.insert(values.end(), part.begin(), part.end());
      continue;
    }
    append_grown(values, part, product(own.begin(), own.begin() + axis),
                 static_cast<std::size_t>(own[static_cast<std::size_t>(axis)]), labels(),
                 product(own.begin() + axis + 1, own.end()));
    shape[static_cast<std::size_t>(axis)] = signed_size(labels());
  }
  shape.insert(shape.begin(), signed_size(prompts_.size()));
  add(backend, spec, std::move(shape), values);
}

void PromptStack::add(Backend& backend, const TensorSpec& spec, Sizes shape,
                      const std::vector<float>& values) {
  const ElementType type = *element_type(spec.dtype);
  const std::vector<char> bytes = rounded(values, type);
  memory_.push_back(backend.place(bytes.size()));
  char* data = memory_.back().get();
  backend.copy({{data, bytes.size(), bytes.data(), bytes.size(), bytes.size(), 1}});
  bound_.push_back({spec.name, type, std::move(shape), data, true});
}

std::int64_t PromptStack::index(const RowPrompt& prompt) const {
  const auto found = std::find(prompts_.begin(), prompts_.end(), prompt);
  return found == prompts_.end() ? 0 : found - prompts_.begin();
}

const Ids& PromptStack::before(const RowPrompt& prompt) const {
  static const Ids none;
  const auto found = ids_.find(prompt.get());
  return found == ids_.end() ? none : found->second;
}

std::size_t PromptStack::labels() const {
  std::size_t most = 0;
  for (const RowPrompt& prompt : prompts_) most = std::max(most, prompt->info.labels.size());
  return most;
}

PromptInputs::PromptInputs(Backend& backend, const Graph& graph, std::int64_t vocabulary)
    : backend_(backend), graph_(graph), vocabulary_(vocabulary) {}

SharedStack PromptInputs::stack(const std::vector<RowPrompt>& rows) const {
  std::vector<RowPrompt> prompts;
  for (const RowPrompt& one : rows)
    if (one) prompts.push_back(one);
  // Whatever the order of the rows, it is the same stack. A graph that takes prompts with and without
  // a prefix KV finds those that have one first.
  std::sort(prompts.begin(), prompts.end(), [](const RowPrompt& one, const RowPrompt& other) {
    const bool prefix = one->info.prefix_kv.has_value();
    if (prefix != other->info.prefix_kv.has_value()) return prefix;
    return one->name != other->name ? one->name < other->name : one < other;
  });
  prompts.erase(std::unique(prompts.begin(), prompts.end()), prompts.end());
  if (SharedStack found = kept(prompts)) return found;
  auto made = std::make_shared<PromptStack>(backend_, graph_, vocabulary_, std::move(prompts));
  return keep(std::move(made));
}

SharedStack PromptInputs::kept(const std::vector<RowPrompt>& prompts) const {
  std::lock_guard<std::mutex> lock(lock_);
  return stack_of(prompts);
}

SharedStack PromptInputs::stack_of(const std::vector<RowPrompt>& prompts) const {
  const auto place = std::find_if(stacks_.begin(), stacks_.end(), [&](const SharedStack& one) {
    return one->prompts() == prompts;
  });
  if (place == stacks_.end()) return nullptr;
  stacks_.splice(stacks_.end(), stacks_, place);
  return *place;
}

SharedStack PromptInputs::keep(SharedStack made) const {
  std::lock_guard<std::mutex> lock(lock_);
  if (SharedStack other = stack_of(made->prompts())) return other;
  stacks_.push_back(made);
  std::size_t size = 0;
  for (auto one = stacks_.end(); one != stacks_.begin();) {
    --one;
    size += std::max<std::size_t>((*one)->prompts().size(), 1);
    if (size > kMostInARun && one != std::prev(stacks_.end())) one = stacks_.erase(one);
  }
  return made;
}

void PromptInputs::forget(const RowPrompt& prompt) const {
  std::lock_guard<std::mutex> lock(lock_);
  stacks_.remove_if([&prompt](const SharedStack& one) {
    const std::vector<RowPrompt>& held = one->prompts();
    return std::find(held.begin(), held.end(), prompt) != held.end();
  });
}

}  // namespace ptdeploy::detail
