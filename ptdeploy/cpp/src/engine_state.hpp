// What an open bundle is inside: shared by an Engine's copies and its sessions.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "backend.hpp"
#include "kv_buffer.hpp"

namespace ptdeploy::detail {

struct EngineState {
  Bundle bundle;
  BundleInfo info;
  std::unique_ptr<Backend> backend;
  bool takes_type_ids = false;

  // Classifiers.
  std::size_t classes = 0;

  // Causal models. A prompt that is not frozen is fed like text, under ids behind the vocabulary.
  KVLayout layout;
  Ids virtual_ids;
  // The last request's buffer, taken out while it is used: two threads never share one.
  mutable std::mutex spare_mutex;
  mutable std::unique_ptr<KVBuffer> spare;

  const Manifest& manifest() const { return bundle.manifest; }
};

// causal.cc, classifier.cc: what a task needs of a bundle that was checked.
void prepare_causal(EngineState& state, const std::optional<std::vector<float>>& prefix_kv);
void prepare_classifier(EngineState& state);

// Throws InputError if the bundle's task is another.
void require_task(const EngineState& state, Task task, const char* method);

// Scores of checked rows, each as if it ran alone; `segments` may be empty.
std::vector<Logits> classifier_logits(const EngineState& state, const std::vector<Ids>& rows,
                                      const std::vector<Ids>& segments);
std::vector<Logits> causal_logits(const EngineState& state, const std::vector<Ids>& rows);

// causal.cc, for sessions.
GenerationOptions chosen_options(const EngineState& state, const GenerateOptions& given);
Ids fed_ids(const EngineState& state, const Ids& ids);

}  // namespace ptdeploy::detail
