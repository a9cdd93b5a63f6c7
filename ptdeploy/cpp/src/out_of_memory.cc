#include "out_of_memory.hpp"

#include <algorithm>
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

// The number that stands behind the word's first place in a text, in bytes; "" if none does.
std::string number_behind(const std::string& text, const std::string& word) {
  for (std::size_t at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    const std::size_t first = at + word.size(), end = text.find_first_not_of(kDigits, first);
    const std::string digits = text.substr(first, end == text.npos ? end : end - first);
    // No part of a word, or of a number with a fraction.
    const bool ends = end == text.npos || text.find_first_of(" \n).,:;", end) == end;
    const bool fraction = end != text.npos && text[end] == '.' &&
                          text.find_first_of(kDigits, end) == end + 1;
    if (digits.empty() || digits.size() > 20 || !ends || fraction) continue;
    return decimal_size(std::stod(digits));
  }
  return "";
}

// What was asked for at once.
std::string asked_for(const std::string& text) {
  const std::string words = in_small_letters(text);
  for (const char* word : {"allocate ", "size ", "mmap "})
    if (const std::string found = number_behind(words, word); !found.empty()) return found;
  return "";
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
  const bool own = device != "cpu";
  const std::string asked = asked_for(error.what());
  const std::string machine = own ? "" : machine_memory();
  return OutOfMemory("Memory ran out" + (own ? " on " + device : "") + ": " + doing +
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
