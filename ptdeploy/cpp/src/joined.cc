#include "joined.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

namespace ptdeploy::detail {
namespace {

// Tokens of one such run: with more, products gain little, and attention looks at ever more tokens
// of other rows.
constexpr std::size_t kMostJoined = 128;
// Slots before them, where they are several prompts': they are copied for the run.
constexpr std::size_t kPast = 2048;
// Pairs of a token and a slot of another row's prompt that a row may add: attention computes them
// for nothing.
constexpr std::size_t kHidden = 24576;

// Rows that run as one sequence: how many tokens, and the slots of what lies before them.
class Group {
 public:
  std::vector<std::size_t> rows;

  bool takes(const Coming& row, const Room& room) const {
    const std::size_t tokens = tokens_ + row.size;
    std::size_t slots = slots_, hidden = 0;
    if (pasts_.count(row.past)) {
      hidden = row.size * (slots - row.start);
    } else if (!rows.empty()) {
      hidden = row.size * slots + tokens_ * row.start;
      slots += row.start;
      if (!room.mixes || slots > kPast) return false;
    } else {
      slots = row.start;
    }
    return tokens <= std::min(kMostJoined, room.engine) &&
           std::max<std::size_t>(slots, 1) + tokens <= room.context && hidden <= kHidden;
  }

  void add(std::size_t number, const Coming& row) {
    rows.push_back(number);
    tokens_ += row.size;
    if (pasts_.insert(row.past).second) slots_ += row.start;
  }

 private:
  std::size_t tokens_ = 0, slots_ = 0;
  std::set<const void*> pasts_;
};

}  // namespace

std::vector<std::vector<std::size_t>> joined(const std::vector<Coming>& rows, const Room& room) {
  std::map<const void*, std::size_t> first;
  for (std::size_t number = 0; number < rows.size(); ++number)
    first.emplace(rows[number].past, number);
  // Rows of one prompt are neighbours, so that it lies in as few groups as can be.
  std::vector<std::size_t> order(rows.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t one, std::size_t other) {
    return first.at(rows[one].past) < first.at(rows[other].past);
  });
  std::vector<std::vector<std::size_t>> groups;
  Group last;
  auto close = [&] {
    if (!last.rows.empty()) groups.push_back(std::move(last.rows));
    last = Group();
  };
  for (const std::size_t number : order) {
    const Coming& row = rows[number];
    if (row.size == 0 || !(room.mixes || row.start > 0) || !Group().takes(row, room)) {
      groups.push_back({number});
      continue;
    }
    if (!last.takes(row, room)) close();
    last.add(number, row);
  }
  close();
  return groups;
}

}  // namespace ptdeploy::detail
