// What an open bundle is inside: shared by an Engine's copies and its sessions.
#pragma once

#include <memory>
#include <mutex>

#include "backend.hpp"
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
  // Opened when it is first asked for.
  mutable std::mutex text_mutex;
  mutable std::unique_ptr<TextProgram> text_program;

  const TextProgram& text() const {
    std::lock_guard<std::mutex> lock(text_mutex);
    if (!text_program) text_program = open_text_program(bundle);
    return *text_program;
  }
  const Manifest& manifest() const { return bundle.manifest; }
  const TaskKind& kind() const { return kind_of(info.task); }
};

}  // namespace ptdeploy::detail
