#include "parity_cases.hpp"

#include <algorithm>

namespace ptdeploy::detail {
namespace {

using Indices = std::vector<std::size_t>;

constexpr std::size_t kBatch = 8;
// Past this a batch at the profile's edge would take minutes.
constexpr std::int64_t kWidestEdge = 64;

std::string case_name(Source source, std::size_t rows, const char* padding) {
  static constexpr const char* kPrefixes[] = {"", "text ", "data "};
  const std::string prefix = kPrefixes[static_cast<int>(source)];
  if (rows == 1) return prefix + "alone";
  return prefix + "batch " + std::to_string(rows) + " " + padding + "-padded";
}

Indices of_source(const std::vector<Source>& sources, Source wanted) {
  Indices found;
  for (std::size_t i = 0; i < sources.size(); ++i)
    if (sources[i] == wanted) found.push_back(i);
  return found;
}

}  // namespace

std::vector<BatchCase> batch_cases(const std::vector<Source>& sources,
                                   const std::optional<std::int64_t>& max_batch) {
  std::vector<BatchCase> cases;
  // Rows come to this library without padding, and it pads each batch itself: cases that differ by
  // the caller's padding alone are one batch, run once for each of them.
  auto add = [&cases](Source source, const Indices& rows, const char* padding) {
    cases.push_back({case_name(source, rows.size(), padding), rows});
  };
  for (std::size_t i = 0; i < sources.size(); ++i) add(sources[i], {i}, "right");
  const Indices random = of_source(sources, Source::random);
  const std::int64_t bound = max_batch.value_or(0);
  const std::int64_t most = bound != 0 ? bound : static_cast<std::int64_t>(random.size());
  for (const Indices& group : {Indices{0, 4, 6}, Indices{0, 1, 2, 3, 4, 5, 6, 7}, Indices{0, 8}}) {
    if (group.back() >= random.size() || static_cast<std::int64_t>(group.size()) > most) continue;
    Indices rows;
    for (std::size_t index : group) rows.push_back(random[index]);
    for (const char* padding : {"right", "left"}) add(Source::random, rows, padding);
  }
  if (random.size() > 2 && most > 2) add(Source::random, {random[2], random[0], random[1]}, "both");
  const std::int64_t edge = std::min(bound, kWidestEdge);
  if (!random.empty() && edge > 1 && edge != 2 && edge != 3 &&
      edge != static_cast<std::int64_t>(kBatch)) {
    Indices rows;
    for (std::size_t i = 0; i < static_cast<std::size_t>(edge); ++i)
      rows.push_back(random[i % std::min(random.size(), kBatch)]);
    add(Source::random, rows, "left");
  }
  const std::int64_t wide = std::min(bound != 0 ? bound : std::int64_t{kBatch}, kWidestEdge);
  const auto size = static_cast<std::size_t>(std::max<std::int64_t>(wide, 1));
  for (Source source : {Source::text, Source::data}) {
    const Indices rows = of_source(sources, source);
    for (std::size_t start = 0; start < rows.size(); start += size) {
      const auto first = rows.begin() + static_cast<std::ptrdiff_t>(start);
      const Indices part(first,
                         first + static_cast<std::ptrdiff_t>(std::min(size, rows.size() - start)));
      if (part.size() < 2) continue;
      for (const char* padding : {"right", "left"}) add(source, part, padding);
    }
  }
  return cases;
}

}  // namespace ptdeploy::detail
