#include "reference_metadata.hpp"

#include <set>

#include "fields.hpp"

namespace ptdeploy::detail {
namespace {

// Each case is one run of the engine, of as many rows as it is worth while to wait for.
constexpr std::size_t kMostCases = 10'000, kMostRows = 64;

constexpr const char* kSources[] = {"random", "text"};

std::size_t read_count(const Json& json, const Where& where) {
  const std::int64_t count = read_int(json, where);
  if (count < 0) where.fail("Expected `int` >= 0");
  return static_cast<std::size_t>(count);
}

auto count_into(std::size_t& place) { return into(place, read_count); }

Source read_source(const Json& json, const Where& where) {
  return static_cast<Source>(read_word(json, where, kSources));
}

double read_bound(const Json& json, const Where& where) {
  const double bound = read_float(json, where);
  if (bound < 0) where.fail("Expected `float` >= 0.0");
  return bound;
}

Thresholds read_thresholds(const Json& json, const Where& where) {
  Thresholds out;
  read_object(json, where,
              {{"max_abs", true, into(out.max_abs, read_bound)},
               {"relative", true, into(out.relative, read_bound)},
               {"cosine", true, into(out.cosine)},
               {"kl", true, into(out.kl)},
               {"min_top1_agreement", true, into(out.min_top1_agreement)}});
  return out;
}

StoredCase read_case(const Json& json, const Where& where) {
  StoredCase out;
  auto rows = [&out](const Json& value, const Where& at) {
    out.rows = read_array(value, at, read_count);
    if (out.rows.empty()) at.fail("Expected `array` of length >= 1");
    if (out.rows.size() > kMostRows)
      at.fail("Expected `array` of length <= " + std::to_string(kMostRows));
  };
  auto padding = [&out](const Json& value, const Where& at) {
    read_word(value, at, {"right", "left", "both"});
    out.padding = read_string(value, at);
  };
  read_object(json, where, {{"rows", true, rows}, {"padding", true, padding}});
  return out;
}

std::vector<std::string> read_pair(const Json& json, const Where& where) {
  auto found = read_array(json, where, read_string);
  if (found.size() != 2) where.fail("Expected `array` of length 2");
  return found;
}

}  // namespace

std::string StoredCase::name(Source source) const {
  const std::string prefix =
      source == Source::random ? "" : kSources[static_cast<std::size_t>(source)] + std::string(" ");
  if (rows.size() == 1) return prefix + "alone";
  return prefix + "batch " + std::to_string(rows.size()) + " " + padding + "-padded";
}

ReferenceMetadata read_reference_metadata(const std::string& text) {
  ReferenceMetadata out;
  std::size_t pairs_of_texts = 0;
  auto texts = [&](const Json& json, const Where& at) {
    out.texts = read_array(json, at, read_string).size();
  };
  auto pairs = [&](const Json& json, const Where& at) {
    pairs_of_texts = read_array(json, at, read_pair).size();
  };
  auto mismatch = [&](const Json& json, const Where& at) {
    out.padded_mismatch.reset();
    if (!is_null(json)) out.padded_mismatch = read_float(json, at, "float | null");
  };
  auto cases = [&](const Json& json, const Where& at) {
    out.cases = read_array(json, at, read_case);
    if (out.cases.size() > kMostCases)
      at.fail("Expected `array` of length <= " + std::to_string(kMostCases));
  };
  read_object(parse_json(text), Where(),
              {{"made_by", true, into(out.made_by)},
               {"texts", true, texts},
               {"pairs", true, pairs},
               {"padded_mismatch", true, mismatch},
               {"rows", true, count_into(out.rows)},
               {"sources", true, array_into(out.sources, read_source)},
               {"cases", true, cases},
               {"thresholds", true, into(out.thresholds, read_thresholds)},
               {"greedy", true, count_into(out.greedy)},
               {"evaluation", true, count_into(out.evaluation)},
               {"evaluated_on", true, into(out.evaluated_on)}});
  out.texts += pairs_of_texts;
  if (out.sources.size() != out.rows)
    throw SchemaError("its metadata has " + std::to_string(out.sources.size()) + " sources for " +
                      std::to_string(out.rows) + " rows");
  return out;
}

std::vector<BatchCase> named_cases(const ReferenceMetadata& metadata) {
  std::vector<BatchCase> out;
  for (const StoredCase& one : metadata.cases) {
    const std::string where = "cases[" + std::to_string(out.size()) + "]";
    std::set<std::string> sources;
    for (std::size_t row : one.rows)
      if (row >= metadata.rows)
        throw SchemaError(where + " has row " + std::to_string(row) + " of " +
                          std::to_string(metadata.rows));
    for (std::size_t row : one.rows)
      sources.insert(kSources[static_cast<std::size_t>(metadata.sources[row])]);
    if (sources.size() > 1)
      throw SchemaError(where + " has rows of " + *sources.begin() + " and " + *sources.rbegin());
    out.push_back({one.name(metadata.sources[one.rows[0]]), one.rows});
  }
  return out;
}

}  // namespace ptdeploy::detail
