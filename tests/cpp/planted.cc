// planted FAULT: does what a sanitizer or valgrind must report, so that a clean run means
// something.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <thread>

namespace {

volatile int shared = 0;
void* volatile lost = nullptr;

void race() {
  auto count = [] {
    for (int i = 0; i < 100000; ++i) shared = shared + 1;
  };
  std::thread one(count), two(count);
  one.join();
  two.join();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "";
  if (fault == "race") race();
  if (fault == "leak") {
    lost = std::malloc(1234);
    lost = nullptr;
  }
  if (fault == "overflow") {
    volatile char* bytes = static_cast<char*>(std::malloc(8));
    shared = bytes[argc + 6];
    std::free(const_cast<char*>(bytes));
  }
  if (fault == "undefined") shared = std::numeric_limits<int>::max() + argc;
}
