// The text of one row while it is written: where it ends, and what of it can be shown already:
// ptdeploy/runtime/answer.py in C++.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "continuation.hpp"

namespace ptdeploy::detail {

// Throws InputError on an empty stop string, which every text holds, one that is no UTF-8, and on more
// or longer ones than each token is held against.
void check_stop(const std::vector<std::string>& stop);
void check_stop_count(std::size_t count);

// What one row is continued with, up to the first of some stop strings.
//
// A stop string may hold special tokens, which have no text: it is looked for in the text with them,
// and the answer ends where it begins.
class Answer {
 public:
  Answer(const Detokenizer& tokenizer, const Ids& before, const std::vector<std::string>& stop);

  // Adds a token; says whether the answer ends with it.
  bool push(std::int64_t token);
  // What was not shown yet and cannot be the beginning of a stop string.
  std::string piece();
  // What `piece` has not given of the whole answer.
  std::string rest(const std::string& whole) const;
  // The whole answer, of all its tokens.
  std::string text(const Ids& tokens) const;

 private:
  // Looks for strings in a text that is still being written.
  class Watch {
   public:
    Watch(Continuation continuation, std::vector<std::string> strings);
    // Gives the text that is settled now; `found` says which string stands in what is written so far.
    std::string push(std::int64_t token);
    const std::optional<std::string>& found() const { return found_; }
    const Continuation& continuation() const { return continuation_; }

   private:
    Continuation continuation_;
    std::vector<std::string> strings_;
    std::size_t overlap_ = 0;  // characters
    std::string last_;
    std::optional<std::string> found_;
  };

  std::vector<std::string> stop_;
  std::map<std::string, std::string> seen_;  // what is seen of one that holds special tokens
  Watch visible_;
  std::optional<Watch> special_;
  std::optional<std::string> found_;
  std::string held_;
  std::size_t shown_ = 0;  // characters
};

}  // namespace ptdeploy::detail
