// Answers a request a line with one number: what benchmarks/cpp.py asks its Python child, too.
//   open BUNDLE            seconds
//   generate IDS STEPS     seconds for STEPS greedy tokens after the ids, which no EOS ends
//   peak                   most bytes that were resident at once
#include <chrono>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>

#include "ptdeploy/ptdeploy.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == "VmHWM:") {
      double kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1024;
    }
  return 0;
}

}  // namespace

int main() {
  std::optional<ptdeploy::Engine> engine;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string what, given;
    words >> what >> given;
    const auto start = Clock::now();
    double answer = 0;
    if (what == "open") {
      engine = ptdeploy::Engine::open(given);
      answer = since(start);
    } else if (what == "generate") {
      ptdeploy::Ids ids;
      std::istringstream list(given);
      for (std::string part; std::getline(list, part, ',');) ids.push_back(std::stoll(part));
      ptdeploy::GenerateOptions options;
      std::int64_t steps = 0;
      words >> steps;
      options.max_new_tokens = steps;
      options.eos_token_ids.emplace();
      engine->generate({ids}, {}, options);
      answer = since(start);
    } else {
      answer = peak_bytes();
    }
    std::cout.precision(12);
    std::cout << answer << std::endl;
  }
}
