// storm BUNDLE GUEST0 GUEST1 TIMES: threads ask for prompts while others take two in and out, which
// are the same but for their names. Prints
// how many rows were answered and how many times a prompt came and went; ends with 1 where an answer
// is not what it is alone.
#include <stdlib.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <thread>

#include "ptdeploy/ptdeploy.hpp"

namespace {

using ptdeploy::Engine;
using Rows = std::vector<ptdeploy::Ids>;

const Rows kRows = {{5, 6, 7}, {40}, {9, 10, 11, 12}};

bool alike(const ptdeploy::Logits& one, const ptdeploy::Logits& other) {
  if (one.values.size() != other.values.size()) return false;
  for (std::size_t i = 0; i < one.values.size(); ++i)
    if (!(std::abs(one.values[i] - other.values[i]) < 1e-4F)) return false;
  return true;
}

struct Storm {
  Engine engine;
  std::map<std::string, std::string> paths;   // of the guests
  std::vector<ptdeploy::Logits> own, guests;  // what each row is by default, and with theirs
  std::atomic<int> answered{0}, refused{0}, rounds{0};
  std::atomic<bool> wrong{false}, over{false};

  void ask(unsigned seed, int times) {
    for (int i = 0; i < times; ++i) {
      std::vector<ptdeploy::Prompt> prompts;
      std::vector<bool> guest;
      for (std::size_t row = 0; row < kRows.size(); ++row) {
        seed = seed * 1664525U + 1013904223U;
        guest.push_back((seed >> 16) % 3 > 0);
        prompts.push_back(guest.back() ? "guest" + std::to_string((seed >> 20) % 2) : "default");
      }
      try {
        if (engine.info().task == ptdeploy::Task::causal_lm) {
          if (seed & 0x1000) cancelled(prompts, seed >> 24 & 3);
          if (seed & 0x2000) talk(prompts.back());
        }
        const auto found = engine.logits(kRows, prompts);
        for (std::size_t row = 0; row < found.size(); ++row)
          if (!alike(found[row], guest[row] ? guests[row] : own[row])) wrong = true;
        ++answered;
      } catch (const ptdeploy::InputError&) {
        ++refused;  // that guest was out just then
      }
    }
  }

  // A request that ends after some steps, and one of its rows before.
  void cancelled(const std::vector<ptdeploy::Prompt>& prompts, int steps) {
    ptdeploy::GenerateOptions options = short_answers();
    options.cancelled = [&steps] { return steps-- == 0; };
    engine.generate(kRows, prompts, options,
                    [](std::size_t row, std::int64_t) { return row != 1; });
  }

  // A session and its fork, each continued from the same place, say the same. Longer than a block.
  void talk(const ptdeploy::Prompt& prompt) {
    ptdeploy::Session session = engine.session(prompt);
    session.append(ptdeploy::Ids(33, 7));
    ptdeploy::Session fork = session.fork();
    const auto first = session.generate(short_answers()).token_ids;
    fork.append({8, 9});
    fork.generate(short_answers());
    fork.rollback(fork.token_ids().size() - 33);
    session.rollback(first.size());
    if (fork.generate(short_answers()).token_ids != first) wrong = true;
    if (session.generate(short_answers()).token_ids != first) wrong = true;
  }

  static ptdeploy::GenerateOptions short_answers() {
    ptdeploy::GenerateOptions options;
    options.max_new_tokens = 3;
    options.eos_token_ids.emplace();
    return options;
  }

  void come_and_go(const std::string& name) {
    do {
      // Some requests find it.
      for (const int seen = answered + refused; !over && answered + refused < seen + 4;)
        std::this_thread::yield();
      engine.unload_prompt(name);
      engine.prompts();
      engine.load_prompt(paths.at(name), name);
      ++rounds;
    } while (!over);
  }
};

}  // namespace

int main(int argc, char** argv) {
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  if (argc != 5) return std::fprintf(stderr, "usage: storm BUNDLE GUEST0 GUEST1 TIMES\n"), 2;
  try {
    ptdeploy::OpenOptions options;
    options.threads = 1;
    options.max_prompts = 2;
    Storm storm{Engine::open(argv[1], options), {{"guest0", argv[2]}, {"guest1", argv[3]}}, {}, {}};
    storm.engine.load_prompt(argv[2], "guest0");
    storm.own = storm.engine.logits(kRows);
    storm.guests = storm.engine.logits(kRows, "guest0");
    storm.engine.load_prompt(argv[3], "guest1");
    std::vector<std::thread> asking, moving;
    for (const char* name : {"guest0", "guest1"})
      moving.emplace_back([&storm, name] { storm.come_and_go(name); });
    for (unsigned seed = 1; seed <= 4; ++seed)
      asking.emplace_back([&storm, seed, argv] { storm.ask(seed, std::atoi(argv[4])); });
    for (std::thread& one : asking) one.join();
    storm.over = true;
    for (std::thread& one : moving) one.join();
    std::printf("%d %d %d\n", storm.answered.load(), storm.refused.load(), storm.rounds.load());
    return storm.wrong ? 1 : 0;
  } catch (const ptdeploy::Error& error) {
    std::fprintf(stderr, "storm: %s\n", error.what());
    return 2;
  }
}
