// Opening a bundle, and what every task has in common.
#include <future>

#include "engine_state.hpp"
#include "layout.hpp"
#include "out_of_memory.hpp"
#include "rows.hpp"

namespace ptdeploy {
namespace detail {
namespace {

BundleInfo describe(const Manifest& manifest) {
  BundleInfo info;
  info.task = manifest.task;
  info.target = manifest.target;
  info.device = manifest.device;
  info.precision = manifest.precision;
  info.route = manifest.graph().fused ? "fused" : "plain";
  info.prompt = manifest.default_prompt.value_or("");
  info.labels = manifest.prompt().labels;
  info.head = manifest.prompt().head;
  info.num_virtual_tokens = manifest.prompt().num_virtual_tokens;
  info.prefix_kv = manifest.prompt().prefix_kv.has_value();
  info.max_sequence = manifest.limits.max_context - info.num_virtual_tokens;
  info.max_context = manifest.limits.max_context;
  info.vocab_size = manifest.limits.vocab_size;
  info.max_batch = manifest.limits.max_batch;
  info.type_vocab_size = manifest.limits.type_vocab_size;
  return info;
}

// What a prompt is, or the base model, whose name is empty.
ptdeploy::PromptInfo describe(const EngineState& state, const std::string& name,
                              const PromptInfo& prompt) {
  ptdeploy::PromptInfo info;
  info.name = name;
  info.kind = prompt.kind;
  info.head = prompt.head;
  info.labels = prompt.labels;
  info.num_virtual_tokens = prompt.num_virtual_tokens;
  info.prefix_kv = prompt.prefix_kv.has_value();
  info.max_sequence = state.manifest().limits.max_context - prompt.num_virtual_tokens;
  info.columns = state.task->columns(prompt);
  return info;
}

std::shared_ptr<const EngineState> open_state(Bundle bundle, const OpenOptions& options) {
  auto state = std::make_shared<EngineState>();
  state->bundle = std::move(bundle);
  check_manifest(state->bundle.path, state->manifest());
  state->info = describe(state->manifest());
  state->backend = open_backend(state->bundle, options);
  state->backend->check(state->bundle);
  state->prompts = std::make_unique<PromptStore>(state->bundle, state->kind().takes_base,
                                                 options.max_prompts);
  state->task = state->kind().open(*state);
  state->prompts->forget = [task = state->task.get()](const RowPrompt& gone) {
    task->forget(gone);
  };
  state->info.columns = state->task->columns(state->manifest().prompt());
  return state;
}

}  // namespace
}  // namespace detail

namespace {

std::shared_ptr<const detail::EngineState> open_once(const std::string& path,
                                                     const OpenOptions& options) {
  const detail::Bundle bundle = detail::read_bundle(path);
  // Hashing gigabytes takes as long as opening them, so both run at once. A damaged file is
  // reported as that, whatever the engine said of it; no engine is given out before its hash. Where
  // there is no room for another thread, this one hashes when it is done with the rest.
  const auto either = std::launch::async | std::launch::deferred;
  auto hashed = std::async(either, detail::check_hashes, std::cref(bundle));
  std::shared_ptr<const detail::EngineState> state;
  std::exception_ptr failure;
  try {
    state = detail::open_state(bundle, options);
  } catch (...) {
    failure = std::current_exception();
  }
  hashed.get();
  if (failure) std::rethrow_exception(failure);
  return state;
}

}  // namespace

Engine Engine::open(const std::string& path, const OpenOptions& options) {
  return detail::at_the_door(
      [&] { return Engine(detail::whole(path, [&] { return open_once(path, options); })); });
}

Engine::Engine(std::shared_ptr<const detail::EngineState> state) : state_(std::move(state)) {}

const BundleInfo& Engine::info() const { return state_->info; }

std::optional<std::string> Engine::read(const std::string& role) const {
  return detail::at_the_door([&] { return state_->bundle.content(role); });
}

Ids Engine::encode(const std::string& text) const {
  return detail::at_the_door([&] { return state_->text().encode(text); });
}

std::string Engine::decode(const Ids& ids) const {
  return detail::at_the_door([&] { return state_->detokenizer().decode(ids); });
}

std::vector<PromptInfo> Engine::prompts() const {
  return detail::at_the_door([&] {
    std::vector<PromptInfo> out;
    for (const auto& [name, info] : state_->prompts->infos())
      out.push_back(detail::describe(*state_, name, info));
    return out;
  });
}

PromptInfo Engine::prompt(const Prompt& prompt) const {
  return detail::at_the_door([&] {
    const auto name = state_->prompts->name_of(prompt);
    return detail::describe(*state_, name.value_or(""),
                            name ? state_->prompts->info(*name) : detail::PromptInfo());
  });
}

void Engine::load_prompt(const std::string& path, const std::string& name) {
  detail::at_the_door([&] {
    const detail::PromptPlace place = detail::prompt_place(state_->bundle, path, name);
    state_->prompts->load(place, name.empty() ? place.name : name);
  });
}

void Engine::unload_prompt(const std::string& name) {
  detail::at_the_door([&] { state_->prompts->unload(name); });
}

std::vector<Logits> Engine::logits(const std::vector<Ids>& rows, const Prompts& prompts,
                                   const std::vector<Ids>& token_type_ids) const {
  return detail::at_the_door([&] {
    const detail::HeldPrompts held(*state_->prompts, prompts);
    const detail::Limits& limits = state_->manifest().limits;
    detail::check_rows(rows, limits, held.chosen());
    detail::check_segments(token_type_ids, rows, limits);
    return state_->task->logits(rows, held.chosen(), token_type_ids);
  });
}

std::vector<Classification> Engine::classify(const std::vector<Ids>& rows, const Prompts& prompts,
                                             std::size_t batch_size,
                                             const std::vector<Ids>& token_type_ids) const {
  return detail::at_the_door([&] {
    const detail::HeldPrompts held(*state_->prompts, prompts);
    return state_->task->classify(rows, held.chosen(), batch_size, token_type_ids);
  });
}

std::vector<std::vector<TokenLabel>> Engine::tag(const std::vector<Ids>& rows,
                                                 const Prompts& prompts, std::size_t batch_size,
                                                 const std::vector<Ids>& token_type_ids) const {
  return detail::at_the_door([&] {
    const detail::HeldPrompts held(*state_->prompts, prompts);
    return state_->task->tag(rows, held.chosen(), batch_size, token_type_ids);
  });
}

std::vector<std::vector<double>> Engine::probabilities(
    const std::vector<Ids>& rows, const Prompts& prompts, std::size_t batch_size,
    const std::vector<Ids>& token_type_ids) const {
  return detail::at_the_door([&] {
    const detail::HeldPrompts held(*state_->prompts, prompts);
    return state_->task->probabilities(rows, held.chosen(), batch_size, token_type_ids);
  });
}

std::vector<Generated> Engine::generate(const std::vector<Ids>& rows, const Prompts& prompts,
                                        const GenerateOptions& options,
                                        const OnToken& on_token) const {
  return detail::at_the_door([&] {
    const detail::HeldPrompts held(*state_->prompts, prompts);
    return state_->task->generate(rows, held.chosen(), options, on_token);
  });
}

}  // namespace ptdeploy
