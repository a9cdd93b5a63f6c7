// Which rows' tokens run as one sequence, where an engine can keep their rows apart.
#pragma once

#include <cstddef>
#include <vector>

namespace ptdeploy::detail {

// A row whose tokens come: how many, what lies before them, and how many slots that fills.
struct Coming {
  std::size_t size = 0;
  const void* past = nullptr;
  std::size_t start = 0;
};

// The rows in groups that run as one sequence each, by their numbers: rows of one group have the
// same before them, something at least, and with it at most `context` tokens; an engine runs `engine`
// new ones at most. A row that no other joins is a group of its own. The same groups as
// ptdeploy/runtime/joined.py makes.
std::vector<std::vector<std::size_t>> joined(const std::vector<Coming>& rows, std::size_t context,
                                             std::size_t engine);

}  // namespace ptdeploy::detail
