// What quantization costs: agreement and perplexity against the reference, on text.
#pragma once

#include <functional>
#include <optional>

#include "reference.hpp"

namespace ptdeploy::detail {

// An engine's logits of some rows, with their segments or none.
using RunRows =
    std::function<std::vector<Logits>(const std::vector<Ids>&, const std::vector<Ids>&)>;

// Runs the reference's evaluation texts, each alone; nothing where the reference has none.
std::optional<ParityQuality> evaluate(Reference& reference, const TaskKind& kind, Head head,
                                      const Quantization& allowed, const RunRows& run);

// Where agreement alone would say little, in words.
std::vector<std::string> quality_notes(const ParityQuality& quality);

}  // namespace ptdeploy::detail
