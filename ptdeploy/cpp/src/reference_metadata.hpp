// What a stored reference says of itself, beside its tensors: the fields of docs/bundle.md.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "measure.hpp"

namespace ptdeploy::detail {

// Where a row's ids are from: drawn at random, or ptdeploy's own texts.
enum class Source { random, text };

// Rows by their index, run together; a row may stand in it more than once.
struct StoredCase {
  std::vector<std::size_t> rows;
  std::string padding;

  // Of its rows' source.
  std::string name(Source source) const;
};

struct ReferenceMetadata {
  std::string made_by, evaluated_on;
  std::optional<double> padded_mismatch;
  std::size_t texts = 0;  // and pairs of them
  std::size_t rows = 0, greedy = 0, evaluation = 0;
  std::vector<Source> sources;  // one for each row
  std::vector<StoredCase> cases;
  Thresholds thresholds;
};

// Throws JsonError or SchemaError.
ReferenceMetadata read_reference_metadata(const std::string& text);

// Rows come to this library without padding, and it pads each batch itself: cases that differ by
// the caller's padding alone are one batch, run once for each of them.
struct BatchCase {
  std::string name;
  std::vector<std::size_t> rows;
};
// Throws SchemaError unless each case is of rows that there are, all of one source.
std::vector<BatchCase> named_cases(const ReferenceMetadata& metadata);

}  // namespace ptdeploy::detail
