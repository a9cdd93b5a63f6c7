// server BUNDLE [WORKERS [THREADS]]: reads a request a line, ID TEXT, and answers ID TAB RESULT as
// each is done; of ID@PROMPT TEXT with that prompt. One engine serves all workers: its weights and its
// prompts are there once.
#include <stdlib.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <optional>
#include <queue>
#include <thread>

#include "classes.hpp"
#include "text.hpp"

namespace {

struct Request {
  std::string id, text;
};

// Requests that wait, at most as many as `room`: a reader that is too fast is made to wait.
class Queue {
 public:
  explicit Queue(std::size_t room) : room_(room) {}

  void put(Request request) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return waiting_.size() < room_; });
    waiting_.push(std::move(request));
    changed_.notify_all();
  }

  std::optional<Request> take() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return closed_ || !waiting_.empty(); });
    if (waiting_.empty()) return std::nullopt;
    Request request = std::move(waiting_.front());
    waiting_.pop();
    changed_.notify_all();
    return request;
  }

  void close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::queue<Request> waiting_;
  std::size_t room_;
  bool closed_ = false;
};

ptdeploy::Prompt prompt_of(const std::string& id) {
  const std::size_t at = id.rfind('@');
  return at == std::string::npos ? ptdeploy::Prompt() : ptdeploy::Prompt(id.substr(at + 1));
}

std::string answer(const ptdeploy::Engine& engine, const Text& text, const Request& asked) {
  try {
    const ptdeploy::Ids ids = text.encode(asked.text);
    const ptdeploy::Prompt prompt = prompt_of(asked.id);
    if (engine.info().task == ptdeploy::Task::causal_lm)
      return text.decode(engine.generate({ids}, prompt)[0].token_ids);
    return class_lines(engine, {ids}, prompt)[0];
  } catch (const ptdeploy::Error& error) {
    return "error: " + error.problem();  // one bad request is no reason to stop
  }
}

}  // namespace

int main(int argc, char** argv) {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  if (argc < 2) return std::cerr << "usage: server BUNDLE [WORKERS [THREADS]]\n", 2;
  const int workers = argc > 2 ? std::max(1, std::atoi(argv[2])) : 2;
  try {
    ptdeploy::OpenOptions options;
    // The workers are the threads; with few of them, more for each run may serve better.
    options.threads = argc > 3 ? std::atoi(argv[3]) : 1;
    const auto engine = ptdeploy::Engine::open(argv[1], options);
    const Text text = open_text(engine);
    Queue queue(64);
    std::mutex output;
    std::vector<std::thread> threads;
    for (int i = 0; i < workers; ++i)
      threads.emplace_back([&] {
        while (auto request = queue.take()) {
          const std::string result = answer(engine, text, *request);
          std::lock_guard<std::mutex> lock(output);
          // A line each: no answer, and no id, can forge another's.
          std::cout << ptdeploy::printable(request->id) << '\t' << ptdeploy::printable(result)
                    << std::endl;
        }
      });
    for (std::string line; std::getline(std::cin, line);) {
      const std::size_t space = std::min(line.find(' '), line.size());
      queue.put({line.substr(0, space), line.substr(std::min(space + 1, line.size()))});
    }
    queue.close();
    for (std::thread& thread : threads) thread.join();
  } catch (const ptdeploy::Error& error) {
    std::cerr << "server: " << error.what() << "\n";
    return 2;
  }
}
