// What differs from task to task. A task is a class in a file of its own and a line of the registry
// in task.cc; nothing else in the library asks which one it is.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "prompt_choice.hpp"

namespace ptdeploy::detail {

// What an open bundle does with its engine.
class TaskEngine {
 public:
  explicit TaskEngine(const EngineState& state) : state_(state) {}
  TaskEngine(const TaskEngine&) = delete;
  TaskEngine& operator=(const TaskEngine&) = delete;
  virtual ~TaskEngine();

  // Of logits: a prompt's classes, or the vocabulary.
  virtual std::size_t columns(const PromptInfo& prompt) const = 0;
  // Scores of checked rows, each as if it ran alone with its own prompt; `segments` may be empty.
  virtual std::vector<Logits> logits(const std::vector<Ids>& rows, const Chosen& chosen,
                                     const std::vector<Ids>& segments) const = 0;
  // Lets go of all that holds a prompt.
  virtual void forget(const RowPrompt& prompt) const = 0;

  // Engine's methods of these names, which check what they are given. Throw InputError where they
  // are another task's.
  virtual std::vector<Classification> classify(const std::vector<Ids>& rows, const Chosen& chosen,
                                               std::size_t batch_size,
                                               const std::vector<Ids>& segments) const;
  virtual std::vector<std::vector<TokenLabel>> tag(const std::vector<Ids>& rows,
                                                   const Chosen& chosen, std::size_t batch_size,
                                                   const std::vector<Ids>& segments) const;
  virtual std::vector<std::vector<double>> probabilities(const std::vector<Ids>& rows,
                                                         const Chosen& chosen,
                                                         std::size_t batch_size,
                                                         const std::vector<Ids>& segments) const;
  virtual std::vector<Generated> generate(const std::vector<Ids>& rows, const Chosen& chosen,
                                          const GenerateOptions& options,
                                          const OnToken& on_token) const;
  // `owner` is the engine's own state, which the session keeps alive.
  virtual std::unique_ptr<SessionState> session(std::shared_ptr<const EngineState> owner,
                                                const Chosen& chosen, std::size_t max_tokens) const;

 protected:
  // An InputError: the method is for another task.
  [[noreturn]] void refuse(const char* method, Task for_task) const;

  const EngineState& state_;
};

// What a task's engine is asked without being open.
struct TaskKind {
  const char* name;  // PEFT's
  bool one_answer;   // a row's logits are (1, columns), not of each token
  bool writes;       // it continues texts: the logits at a token are scores of the one after it
  bool any_head;     // its logits may be more than scores of classes of which one is true
  bool takes_base;   // a row can do without a prompt: a trained head belongs to one
  // Throws Problem naming the first thing in a manifest that no engine of this task has.
  void (*require)(const Manifest& manifest);
  // What a checked bundle does whose backend is open and whose default prompt was read. Throws
  // TargetUnavailable if the backend cannot run it.
  std::unique_ptr<TaskEngine> (*open)(const EngineState& state);

  // How many rows of logits a row of so many tokens has.
  std::size_t positions(std::size_t tokens) const { return one_answer ? 1 : tokens; }
};

const TaskKind& kind_of(Task task);

// The tasks, a file each.
extern const TaskKind kClassifier;       // classifier.cc
extern const TaskKind kTokenClassifier;  // token_classifier.cc
extern const TaskKind kCausal;           // causal.cc

}  // namespace ptdeploy::detail
