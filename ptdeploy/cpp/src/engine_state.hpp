// What an open bundle is inside: shared by an Engine's copies and its sessions.
#pragma once

#include <memory>
#include <mutex>

#include "backend.hpp"
#include "detokenizer.hpp"
#include "prompt_store.hpp"
#include "task.hpp"
#include "text_program.hpp"

namespace ptdeploy::detail {

struct EngineState {
  Bundle bundle;
  BundleInfo info;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<PromptStore> prompts;
  std::unique_ptr<TaskEngine> task;
  // Opened when they are first asked for.
  mutable std::mutex text_mutex;
  mutable std::unique_ptr<TextProgram> text_program;
  mutable std::unique_ptr<Detokenizer> ids_to_text;

  const TextProgram& text() const {
    std::lock_guard<std::mutex> lock(text_mutex);
    if (!text_program) text_program = open_text_program(bundle);
    return *text_program;
  }
  const Detokenizer& detokenizer() const {
    std::lock_guard<std::mutex> lock(text_mutex);
    if (!ids_to_text) ids_to_text = open_detokenizer(bundle);
    return *ids_to_text;
  }
  const Manifest& manifest() const { return bundle.manifest; }
  const TaskKind& kind() const { return kind_of(info.task); }
};

}  // namespace ptdeploy::detail
