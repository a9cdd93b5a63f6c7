// The batches that an engine is compared in: those of ptdeploy/parity/cases.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "reference.hpp"

namespace ptdeploy::detail {

// Rows by their index, run together; a row may stand in it more than once.
struct BatchCase {
  std::string name;
  std::vector<std::size_t> rows;
};

// Each row alone; then batches of unequal rows, none of over `max_batch` rows.
std::vector<BatchCase> batch_cases(const std::vector<Source>& sources,
                                   const std::optional<std::int64_t>& max_batch);

}  // namespace ptdeploy::detail
