// Which rows' tokens run as one sequence, where an engine can keep their rows apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ptdeploy::detail {

// A row whose tokens come: how many, what lies before them, and how many slots that fills.
struct Coming {
  std::size_t size = 0;
  const void* past = nullptr;
  std::size_t start = 0;
};

// What one run has room for: the new tokens and all that lies before them fit `context`, an engine
// runs `engine` new ones at most. Unless it `mixes`, rows of one run have the same before them,
// something at least.
struct Room {
  std::size_t context = 0, engine = 0;
  bool mixes = false;
};

// The rows in groups that run as one sequence each, by their numbers. A row that no other joins is a
// group of its own. The same groups as ptdeploy/runtime/joined.py makes.
std::vector<std::vector<std::size_t>> joined(const std::vector<Coming>& rows, const Room& room);

// What keeps apart rows that come as one sequence: of each token its place in its row, and how many
// of the first and of the last slots of the past are not its row's; (3, tokens).
class Offsets {
 public:
  static constexpr std::size_t kParts = 3;

  // Of one row, from its first token on.
  explicit Offsets(std::size_t tokens) : tokens_(tokens), values_(kParts * tokens) {
    for (std::size_t token = 0; token < tokens; ++token) set(token, token, 0, 0);
  }

  void set(std::size_t token, std::size_t place, std::size_t before, std::size_t behind) {
    values_[token] = static_cast<std::int64_t>(place);
    values_[tokens_ + token] = static_cast<std::int64_t>(before);
    values_[2 * tokens_ + token] = static_cast<std::int64_t>(behind);
  }

  std::int64_t* data() { return values_.data(); }

 private:
  std::size_t tokens_;
  std::vector<std::int64_t> values_;
};

}  // namespace ptdeploy::detail
