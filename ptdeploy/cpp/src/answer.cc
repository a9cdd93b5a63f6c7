#include "answer.hpp"

#include <algorithm>

#include "utf8.hpp"

namespace ptdeploy::detail {
namespace {

// Each token of an answer is held against each of them.
constexpr std::size_t kStops = 64, kLength = 1024;

[[noreturn]] void refuse(std::size_t count, std::size_t longest) {
  throw InputError("stop has " + std::to_string(count) + " strings of up to " +
                   std::to_string(longest) + " characters; it may have " + std::to_string(kStops) +
                   " of up to " + std::to_string(kLength) + ".");
}

// The names of the special tokens, the longest first.
std::vector<std::string> names_of(const Detokenizer& tokenizer) {
  std::vector<std::string> names(tokenizer.special().begin(), tokenizer.special().end());
  std::sort(names.begin(), names.end(), [](const std::string& one, const std::string& other) {
    return std::pair(characters(one), one) > std::pair(characters(other), other);
  });
  return names;
}

// How much of the text's end is the string's beginning.
std::size_t overlap(std::string_view text, std::string_view string) {
  for (std::size_t size = std::min(text.size(), string.size()); size > 0; --size)
    if (ends_with(text, string.substr(0, size))) return size;
  return 0;
}

std::map<std::string, std::string> seen_of(const std::vector<std::string>& stop,
                                           const Detokenizer& tokenizer) {
  std::map<std::string, std::string> seen;
  if (stop.empty()) return seen;
  const std::vector<std::string> names = names_of(tokenizer);
  for (const std::string& one : stop) {
    const auto holds = [&one](const std::string& name) {
      return one.find(name) != std::string::npos;
    };
    if (std::none_of(names.begin(), names.end(), holds)) continue;
    std::string text = one;
    for (const std::string& name : names) text = replaced(std::move(text), name, "");
    seen[one] = std::move(text);
  }
  return seen;
}

}  // namespace

void check_stop_count(std::size_t count) {
  if (count > kStops) refuse(count, 0);
}

void check_stop(const std::vector<std::string>& stop) {
  std::size_t longest = 0;
  for (const std::string& one : stop) {
    if (one.empty()) throw InputError("A stop string is empty or not text.");
    longest = std::max(longest, characters(one));
  }
  if (stop.size() > kStops || longest > kLength) refuse(stop.size(), longest);
  for (const std::string& one : stop)
    if (!is_utf8(one)) throw InputError("A stop string is not UTF-8.", "Convert it first.");
}

Answer::Answer(const Detokenizer& tokenizer, const Ids& before,
               const std::vector<std::string>& stop)
    : stop_(stop),
      seen_(seen_of(stop, tokenizer)),
      visible_(Continuation(tokenizer, before), stop) {
  if (seen_.empty()) return;
  std::vector<std::string> strings;
  for (const std::string& one : stop)
    if (seen_.count(one) > 0) strings.push_back(one);
  special_.emplace(Continuation(tokenizer, before, true), std::move(strings));
}

bool Answer::push(std::int64_t token) {
  held_ += visible_.push(token);
  found_ = visible_.found();
  if (special_) {
    special_->push(token);
    if (!found_) found_ = special_->found();
  }
  return found_.has_value();
}

std::string Answer::piece() {
  std::size_t keep = 0;
  for (const std::string& one : stop_) {
    const auto seen = seen_.find(one);
    const std::string_view whole = one;
    const std::size_t last = last_characters(whole, 1).size();
    keep = std::max(keep, overlap(held_, seen != seen_.end()
                                             ? std::string_view(seen->second)
                                             : whole.substr(0, whole.size() - last)));
  }
  std::string piece = held_.substr(0, held_.size() - keep);
  held_.erase(0, piece.size());
  shown_ += characters(piece);
  return piece;
}

std::string Answer::rest(const std::string& whole) const {
  return std::string(without_first(whole, shown_));
}

std::string Answer::text(const Ids& tokens) const {
  const std::string all = visible_.continuation().text(tokens);
  if (!found_) return all;
  std::size_t place = std::string::npos;
  for (const std::string& one : stop_) place = std::min(place, all.find(one));
  if (place != std::string::npos) return all.substr(0, place);
  const auto seen = seen_.find(*found_);
  if (seen == seen_.end()) return all;
  for (const std::string_view end : {std::string_view(seen->second),
                                     without_blanks_behind(seen->second)})
    if (ends_with(all, end)) return all.substr(0, all.size() - end.size());
  return all;
}

Answer::Watch::Watch(Continuation continuation, std::vector<std::string> strings)
    : continuation_(std::move(continuation)), strings_(std::move(strings)) {
  for (const std::string& one : strings_) overlap_ = std::max(overlap_, characters(one) - 1);
}

std::string Answer::Watch::push(std::int64_t token) {
  std::string piece = continuation_.push(token);
  if (strings_.empty()) return piece;
  std::string text = last_ + piece;
  last_ = last_characters(text, overlap_);
  const Continuation::End end = continuation_.rest_end(overlap_ + 1);
  // What stands before the end was looked at as it came.
  text = end.joined ? text + end.text : end.text;
  found_.reset();
  for (const std::string& one : strings_)
    if (!found_ && text.find(one) != std::string::npos) found_ = one;
  return piece;
}

}  // namespace ptdeploy::detail
