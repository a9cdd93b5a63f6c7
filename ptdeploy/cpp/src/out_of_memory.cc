#include "out_of_memory.hpp"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <iterator>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "numbers.hpp"

namespace ptdeploy::detail {
namespace {

// As ONNX Runtime, OpenVINO, TensorRT, the C++ library and the system say it, in small letters.
constexpr const char* kRanOut[] = {
    "can't allocate memory", "cannot allocate memory", "unable to allocate",
    "failed to allocate",    "std::bad_alloc",         "bad allocation",
    "out of memory",         "outofmemory",            "not enough memory",
    "(os error 12)"};

constexpr const char* kDigits = "0123456789";
// More are no size of anything.
constexpr std::size_t kMostDigits = 300;

std::string in_small_letters(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::string decimal_size(double count) {
  static constexpr const char* kUnits[] = {"bytes", "kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  for (; count >= 1000 && unit + 1 < std::size(kUnits); ++unit) count /= 1000;
  return formatted(count, 3, 'g') + " " + kUnits[unit];
}

bool in_word(const std::string& words, std::size_t at) {
  return at < words.size() && (std::isalnum(static_cast<unsigned char>(words[at])) != 0 ||
                               words[at] == '_');
}

// Where a size with its unit ends that begins at `first`, as in "1.00 pib"; npos if none does.
std::size_t unit_end(const std::string& words, std::size_t first) {
  std::size_t at = words.find_first_not_of(std::string(kDigits) + ".", first);
  if (at == words.npos || at == first || words[at] != ' ') return words.npos;
  if (++at == words.size() || !std::strchr("kmgtp", words[at])) return words.npos;
  if (words.compare(++at, 1, "i") == 0) ++at;
  return words.compare(at, 1, "b") == 0 ? at + 1 : words.npos;
}

// A whole number of bytes that begins at `first`; "" if it is a part of a word or has a fraction.
std::string whole_number(const std::string& words, std::size_t first) {
  const std::size_t end = std::min(words.find_first_not_of(kDigits, first), words.size());
  if (end == first || end - first > kMostDigits || in_word(words, end)) return "";
  if (words.compare(end, 1, ".") == 0 && words.find_first_of(kDigits, end) == end + 1) return "";
  return decimal_size(std::stod(words.substr(first, end - first)));
}

// What was asked for at once: the first size that is said. The rule of ptdeploy/memory.py.
std::string asked_for(const std::string& text) {
  static const std::string kAllocate = "allocate ";
  const std::string words = in_small_letters(text);
  for (std::size_t at = 0; at < words.size(); ++at)
    for (const std::string& word : {kAllocate, std::string("size "), std::string("mmap ")}) {
      if (words.compare(at, word.size(), word) != 0) continue;
      const std::size_t first = at + word.size();
      const std::size_t end = word == kAllocate ? unit_end(words, first) : words.npos;
      if (end != words.npos) return text.substr(first, end - first);
      if (const std::string found = whole_number(words, first); !found.empty()) return found;
    }
  return "";
}

// Whether an error names a GPU.
bool on_gpu(const std::exception& error) {
  const std::string words = in_small_letters(error.what()), gpu = "gpu";
  if (words.find("cuda") != words.npos) return true;
  for (std::size_t at = words.find(gpu); at != words.npos; at = words.find(gpu, at + 1))
    if ((at == 0 || !in_word(words, at - 1)) && !in_word(words, at + gpu.size())) return true;
  return false;
}

std::string machine_memory() {
#if defined(__unix__) || defined(__APPLE__)
  const double bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                       static_cast<double>(sysconf(_SC_PAGE_SIZE));
  return "This machine has " + decimal_size(bytes) + " of memory.";
#else
  return "";
#endif
}

}  // namespace

bool ran_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) return true;
  const std::string said = in_small_letters(error.what());
  return std::any_of(std::begin(kRanOut), std::end(kRanOut), [&said](const char* words) {
    return said.find(words) != said.npos;
  });
}

OutOfMemory out_of_memory(const std::string& doing, const std::exception& error,
                          const std::string& fix, const std::string& device) {
  const std::string where = device == "cpu" && on_gpu(error) ? "the GPU" : device;
  const bool own = where != "cpu";
  const std::string asked = asked_for(error.what());
  const std::string machine = own ? "" : machine_memory();
  return OutOfMemory("Memory ran out" + (own ? " on " + where : "") + ": " + doing +
                         (asked.empty() ? "" : " (" + asked + " asked for at once)") + ".",
                     fix + (fix.empty() || machine.empty() ? "" : " ") + machine);
}

void throw_run_error(const std::exception& error, const std::string& fault) {
  if (ran_out_of_memory(error))
    throw out_of_memory("the request does not fit", error,
                        "Send fewer rows at once, or fewer tokens.");
  throw EngineFault(fault);
}

}  // namespace ptdeploy::detail
