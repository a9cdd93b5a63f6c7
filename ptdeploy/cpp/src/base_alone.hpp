// Rows without a prompt, of a bundle that was compiled with one: as ptdeploy/parity/base_alone.py.
#pragma once

#include <vector>

#include "prompt_verifier.hpp"

namespace ptdeploy::detail {

// Adds to a prompt's report the rows that its reference has of the base model alone: run alone, in
// one batch, and beside rows with the prompt; and one that is continued so, beside the first of
// `furthest`. A note says where the reference has none, and the bundle no reference of the base
// model's own.
void add_base_alone(ParityReport& report, const EngineState& state, const RowPrompt& prompt,
                    Reference& reference, const Bounds& bounds,
                    const std::vector<ReferenceGreedy>& furthest);

}  // namespace ptdeploy::detail
