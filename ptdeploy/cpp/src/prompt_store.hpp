// An engine's prompts by name: read when they are asked for, and taken in and out while it runs, as in
// ptdeploy/runtime/prompt_store.py.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "prompt_choice.hpp"
#include "prompt_place.hpp"

namespace ptdeploy::detail {

class PromptStore;
struct StoredPrompt;

// What a request named, kept until this is gone. The store must outlive it.
class HeldPrompts {
 public:
  HeldPrompts(PromptStore& store, const Prompts& choice);
  ~HeldPrompts();
  HeldPrompts(const HeldPrompts&) = delete;
  HeldPrompts& operator=(const HeldPrompts&) = delete;

  const Chosen& chosen() const { return chosen_; }

 private:
  PromptStore& store_;
  std::vector<std::shared_ptr<StoredPrompt>> entries_;
  Chosen chosen_;
};

// Any number of threads may use it.
class PromptStore {
 public:
  // `base` says whether a row can do without a prompt. At most `most` prompts stay in memory beside
  // those that requests are using, 0 for all: the least recently used leave it, and are read again
  // when they are asked for. Reads the default prompt. `bundle` must outlive it.
  PromptStore(const Bundle& bundle, bool base, std::size_t most);
  ~PromptStore();
  PromptStore(const PromptStore&) = delete;
  PromptStore& operator=(const PromptStore&) = delete;

  // Called with each prompt that leaves, once no request uses it. Set before any thread asks.
  std::function<void(const RowPrompt&)> forget = [](const RowPrompt&) {};

  // The name of a prompt, or none for the base model. Throws InputError if a row needs one.
  std::optional<std::string> name_of(const Prompt& prompt) const;
  // What can be asked for just now, in the order in which it came.
  Named<PromptInfo> infos() const;
  // Throws InputError, listing those there are, if there is none so.
  PromptInfo info(const std::string& name) const;
  // Throws InputError if the name is taken or is none, BundleError as reading does.
  void load(const PromptPlace& place, const std::string& name);
  // Nobody can ask for it from now on. Waits for those that use it. Throws InputError if there is none
  // of that name, or it is the default one.
  void unload(const std::string& name);

 private:
  friend class HeldPrompts;
  using Entry = std::shared_ptr<StoredPrompt>;

  // These need the lock.
  Entry entry(const std::string& name) const;
  std::string names() const;
  void refuse_taken(const std::string& name) const;
  // Lets the least recently used prompts leave memory.
  std::vector<RowPrompt> surplus();

  Entry take(const std::string& name);
  RowPrompt read(StoredPrompt& entry);
  void give_back(const std::vector<Entry>& entries) noexcept;
  void tell(const std::vector<RowPrompt>& gone) const;

  const Bundle& bundle_;
  const bool base_;
  const std::size_t most_;
  mutable std::mutex lock_;
  std::condition_variable changed_;
  std::map<std::string, Entry> entries_;
  std::size_t ticks_ = 0;
};

}  // namespace ptdeploy::detail
