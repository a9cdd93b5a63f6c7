// What is said of memory that ran out where a library says WORDS: the problem, then the fix.
//   memory_words WORDS
#include <iostream>
#include <stdexcept>

#include "out_of_memory.hpp"

int main(int, char** argv) {
  const std::runtime_error error(argv[1]);
  const auto said = ptdeploy::detail::out_of_memory("it is large", error, "Send less.");
  std::cout << said.problem() << "\n" << said.fix() << "\n";
}
