#include "joined.hpp"

#include <algorithm>
#include <map>

namespace ptdeploy::detail {
namespace {

// Tokens of one such run: with more, products gain little, and attention looks at ever more tokens
// of other rows.
constexpr std::size_t kMostJoined = 128;

}  // namespace

std::vector<std::vector<std::size_t>> joined(const std::vector<Coming>& rows, std::size_t context,
                                             std::size_t engine) {
  struct Open {
    std::size_t group = 0, room = 0;
  };
  std::vector<std::vector<std::size_t>> groups;
  std::map<const void*, Open> open;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const Coming& one = rows[row];
    const std::size_t most = std::min(
        {kMostJoined, engine, context - std::min(one.start, context)});
    if (one.start == 0 || one.size == 0 || one.size > most) {
      groups.push_back({row});
      continue;
    }
    Open& last = open[one.past];
    if (one.size > last.room) {
      last = {groups.size(), most};
      groups.emplace_back();
    }
    groups[last.group].push_back(row);
    last.room -= one.size;
  }
  return groups;
}

}  // namespace ptdeploy::detail
