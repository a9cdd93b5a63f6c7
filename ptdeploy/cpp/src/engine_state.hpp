// What an open bundle is inside: shared by an Engine's copies and its sessions.
#pragma once

#include <memory>

#include "backend.hpp"
#include "task.hpp"

namespace ptdeploy::detail {

struct EngineState {
  Bundle bundle;
  BundleInfo info;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<TaskEngine> task;

  const Manifest& manifest() const { return bundle.manifest; }
  const TaskKind& kind() const { return kind_of(info.task); }
};

}  // namespace ptdeploy::detail
