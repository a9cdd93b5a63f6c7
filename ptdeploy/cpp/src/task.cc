// The registry of tasks, and what is no task's own.
#include "task.hpp"

#include "engine_state.hpp"

namespace ptdeploy::detail {

// In the order of Task.
const TaskKind& kind_of(Task task) {
  static constexpr const TaskKind* kKinds[] = {&kClassifier, &kTokenClassifier, &kCausal};
  return *kKinds[static_cast<std::size_t>(task)];
}

TaskEngine::~TaskEngine() = default;

void TaskEngine::refuse(const char* method, Task for_task) const {
  throw InputError(state_.bundle.path + ": its task is " + kind_of(state_.info.task).name + "; " +
                   method + " is for " + kind_of(for_task).name + ".");
}

std::vector<Classification> TaskEngine::classify(const std::vector<Ids>&, const Chosen&, std::size_t,
                                                 const std::vector<Ids>&) const {
  refuse("classify", Task::seq_cls);
}

std::vector<std::vector<TokenLabel>> TaskEngine::tag(const std::vector<Ids>&, const Chosen&, std::size_t,
                                                     const std::vector<Ids>&) const {
  refuse("tag", Task::token_cls);
}

std::vector<std::vector<double>> TaskEngine::probabilities(const std::vector<Ids>&, const Chosen&,
                                                           std::size_t,
                                                           const std::vector<Ids>&) const {
  refuse("classify", Task::seq_cls);
}

std::vector<Generated> TaskEngine::generate(const std::vector<Ids>&, const Chosen&,
                                            const GenerateOptions&, const OnToken&) const {
  refuse("generate", Task::causal_lm);
}

std::unique_ptr<SessionState> TaskEngine::session(std::shared_ptr<const EngineState>,
                                                  const Chosen&, std::size_t) const {
  refuse("session", Task::causal_lm);
}

}  // namespace ptdeploy::detail
