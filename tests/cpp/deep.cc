// Reads JSON of twice as many levels as the argument says in a thread with musl's default stack, of
// 128 KiB, and prints what comes of it.
#include <pthread.h>

#include <iostream>
#include <string>

#include "json.hpp"

namespace {

void* read(void* given) {
  const int levels = *static_cast<int*>(given);
  std::string text;
  for (int i = 0; i < levels; ++i) text += "{\"a\":[";
  text += "1";
  for (int i = 0; i < levels; ++i) text += "]}";
  try {
    ptdeploy::detail::parse_json(text);
    std::cout << "read";
  } catch (const ptdeploy::detail::JsonError& error) {
    std::cout << error.what();
  }
  return nullptr;
}

}  // namespace

int main(int, char** arguments) {
  constexpr std::size_t kStack = 128 * 1024;
  int levels = std::stoi(arguments[1]);
  pthread_attr_t attributes;
  pthread_t thread;
  if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstacksize(&attributes, kStack) != 0 ||
      pthread_create(&thread, &attributes, read, &levels) != 0)
    return 1;
  return pthread_join(thread, nullptr);
}
