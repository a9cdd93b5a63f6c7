#include "prompt_store.hpp"

#include <algorithm>
#include <new>

#include "schema.hpp"
#include "whose.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::size_t kMostLetters = 64;

// The first characters of a text that may be of any length.
std::string beginning(const std::string& text) {
  std::size_t letters = 0, end = 0;
  for (; end < text.size(); ++end) {
    const bool first = (static_cast<unsigned char>(text[end]) & 0xC0) != 0x80;
    if (first && ++letters > kMostLetters) break;
  }
  return text.substr(0, end);
}

}  // namespace

// A prompt that can be asked for, and how many requests use it just now.
struct StoredPrompt {
  std::string name;
  PromptPlace place;
  std::size_t order = 0;  // in which it came
  std::size_t uses = 0, last_used = 0;
  RowPrompt prompt;
  std::mutex reading;  // one thread reads the file, the others wait for it
};

HeldPrompts::HeldPrompts(PromptStore& store, const Prompts& choice) : store_(store) {
  chosen_.one_each = choice.one_each();
  std::vector<std::optional<std::string>> names;
  for (const Prompt& one : choice.prompts()) names.push_back(store.name_of(one));
  std::map<std::string, RowPrompt> taken;
  try {
    for (const auto& name : names) {
      if (!name || taken.count(*name) > 0) continue;
      entries_.push_back(store.take(*name));
      taken[*name] = store.read(*entries_.back());
    }
    for (const auto& name : names) chosen_.prompts.push_back(name ? taken[*name] : nullptr);
  } catch (...) {
    store.give_back(entries_);
    throw;
  }
}

HeldPrompts::~HeldPrompts() { store_.give_back(entries_); }

PromptStore::PromptStore(const Bundle& bundle, bool base, std::size_t most)
    : bundle_(bundle), base_(base), most_(most) {
  for (const auto& [name, info] : bundle.manifest.prompts) {
    auto one = std::make_shared<StoredPrompt>();
    one->name = name;
    one->place = own_place(bundle, name, info);
    one->order = entries_.size();
    entries_[name] = std::move(one);
  }
  ticks_ = entries_.size();
  // The files of a bundle that is being opened are hashed by whoever opens it.
  if (const auto& name = bundle.manifest.default_prompt)
    entries_[*name]->prompt =
        read_prompt(bundle.file("prompt"), bundle.opened("prompt"), bundle.manifest.graph(), *name,
                    bundle.manifest.prompt());
}

PromptStore::~PromptStore() = default;

Named<PromptInfo> PromptStore::infos() const {
  std::vector<Entry> every;
  {
    std::lock_guard<std::mutex> lock(lock_);
    for (const auto& one : entries_) every.push_back(one.second);
  }
  std::sort(every.begin(), every.end(),
            [](const Entry& one, const Entry& other) { return one->order < other->order; });
  Named<PromptInfo> out;
  for (const Entry& one : every) out.emplace_back(one->name, one->place.info);
  return out;
}

PromptInfo PromptStore::info(const std::string& name) const {
  std::lock_guard<std::mutex> lock(lock_);
  return entry(name)->place.info;
}

void PromptStore::load(const PromptPlace& place, const std::string& name) {
  if (!is_prompt_name(name))
    throw InputError(quoted(beginning(name)) + " is no name of a prompt.",
                     "Use letters, digits, dots, underscores and dashes, at most 64.");
  {
    std::lock_guard<std::mutex> lock(lock_);
    refuse_taken(name);
  }
  auto one = std::make_shared<StoredPrompt>();
  one->name = name;
  one->place = place;
  one->prompt = place.read(bundle_.manifest, name);
  std::vector<RowPrompt> gone;
  {
    std::lock_guard<std::mutex> lock(lock_);
    refuse_taken(name);
    one->order = one->last_used = ++ticks_;
    entries_[name] = std::move(one);
    gone = surplus();
  }
  tell(gone);
}

void PromptStore::unload(const std::string& name) {
  if (name == bundle_.manifest.default_prompt)
    throw InputError(quoted(name) + " is the prompt of requests that name none, and stays.",
                     "Bound the memory of prompts with OpenOptions::max_prompts.");
  RowPrompt gone;
  {
    std::unique_lock<std::mutex> lock(lock_);
    const Entry one = entry(name);
    entries_.erase(name);
    changed_.wait(lock, [&one] { return one->uses == 0; });
    gone = std::move(one->prompt);
  }
  if (gone) tell({gone});
}

std::optional<std::string> PromptStore::name_of(const Prompt& prompt) const {
  const auto& preset = bundle_.manifest.default_prompt;
  if (!prompt.is_default() && !prompt.is_base()) return prompt.name();
  if (prompt.is_default() && preset) return preset;
  if (base_) return std::nullopt;
  std::lock_guard<std::mutex> lock(lock_);
  throw InputError(bundle_.path + ": a head belongs to a prompt, and the base model has none.",
                   "Name a prompt: there is " + names() + ".");
}

PromptStore::Entry PromptStore::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found != entries_.end()) return found->second;
  throw InputError(bundle_.path + ": has no prompt " + quoted(beginning(name)) + "; it has " +
                       names() + ".",
                   "Put one into the bundle with ptdeploy prompt add, or into this engine with "
                   "engine.load_prompt.");
}

std::string PromptStore::names() const {
  std::vector<std::string> every;
  for (const auto& one : entries_) every.push_back(one.first);
  return in_words(std::move(every));
}

void PromptStore::refuse_taken(const std::string& name) const {
  if (entries_.count(name) > 0)
    throw InputError("There is a prompt " + quoted(name) + " already.",
                     "Unload that one, or give another name.");
}

std::vector<RowPrompt> PromptStore::surplus() {
  std::vector<RowPrompt> gone;
  if (most_ == 0) return gone;
  std::vector<Entry> idle;
  std::size_t here = 0;
  for (const auto& [name, one] : entries_) {
    here += one->prompt != nullptr;
    if (one->prompt && one->uses == 0) idle.push_back(one);
  }
  std::sort(idle.begin(), idle.end(), [](const Entry& one, const Entry& other) {
    return one->last_used < other->last_used;
  });
  for (std::size_t i = 0; i < idle.size() && here > most_; ++i, --here)
    gone.push_back(std::move(idle[i]->prompt));
  return gone;
}

PromptStore::Entry PromptStore::take(const std::string& name) {
  std::lock_guard<std::mutex> lock(lock_);
  const Entry one = entry(name);
  ++one->uses;
  one->last_used = ++ticks_;
  return one;
}

// The entry was taken, so that its prompt cannot leave memory meanwhile.
RowPrompt PromptStore::read(StoredPrompt& one) {
  std::lock_guard<std::mutex> reading(one.reading);
  {
    std::lock_guard<std::mutex> lock(lock_);
    if (one.prompt) return one.prompt;
  }
  RowPrompt found = one.place.read(bundle_.manifest, one.name);
  std::vector<RowPrompt> gone;
  {
    std::lock_guard<std::mutex> lock(lock_);
    one.prompt = found;
    gone = surplus();
  }
  tell(gone);
  return found;
}

void PromptStore::give_back(const std::vector<Entry>& entries) noexcept {
  if (entries.empty()) return;
  {
    std::lock_guard<std::mutex> lock(lock_);
    for (const Entry& one : entries) --one->uses;
  }
  changed_.notify_all();
  try {
    std::unique_lock<std::mutex> lock(lock_);
    const std::vector<RowPrompt> gone = surplus();
    lock.unlock();
    tell(gone);
  } catch (const std::bad_alloc&) {
    // They leave memory with the next request.
  }
}

void PromptStore::tell(const std::vector<RowPrompt>& gone) const {
  for (const RowPrompt& one : gone) forget(one);
}

}  // namespace ptdeploy::detail
