// Prints how many stacks threads get that ask for one prompt's at the same moment, and the next one.
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "host_backend.hpp"
#include "prompt_inputs.hpp"

namespace {

using namespace ptdeploy::detail;

constexpr std::size_t kThreads = 8;

// Nobody's prompt is placed before everybody's is about to be.
class Together final : public HostBackend {
 public:
  std::unique_ptr<Run> bind(const std::vector<Bound>&, const std::vector<Bound>&) override {
    return nullptr;
  }
  void check(const ptdeploy::detail::Bundle&) const override {}

  Placed place(std::size_t bytes) override {
    std::unique_lock<std::mutex> lock(lock_);
    ++came_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return came_ >= kThreads; });
    return HostBackend::place(bytes);
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::size_t came_ = 0;
};

}  // namespace

int main() {
  Graph graph;
  TensorSpec table;
  table.role = TensorRole::table;
  table.name = "virtual_tokens";
  table.dtype = "float32";
  table.shape = {std::string("virtual"), std::int64_t{2}};
  graph.inputs = {table};
  auto prompt = std::make_shared<LoadedPrompt>();
  prompt->name = "one";
  prompt->info.num_virtual_tokens = 2;
  prompt->tensors.virtual_tokens = {1, 2, 3, 4};

  Together backend;
  const PromptInputs inputs(backend, graph, 100);
  std::vector<SharedStack> found(kThreads + 1);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] { found[i] = inputs.stack({prompt}); });
  for (std::thread& one : threads) one.join();
  found[kThreads] = inputs.stack({prompt});
  std::cout << std::set<SharedStack>(found.begin(), found.end()).size();
}
