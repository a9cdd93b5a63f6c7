// What any manifest must say for its engine to be run as it says: ranges, signature. The same
// rules, in the same order and the same words, as ptdeploy/runtime/layout.py.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace ptdeploy::detail {

// Ids, positions and sizes fit in 32 bits, so that products of two of them fit in 64.
constexpr std::int64_t kMost = 2147483647;
constexpr const char* kAgain = "Compile the checkpoint again.";

// Throws BundleError naming the first thing in the manifest of a folder that no engine of ours has.
void check_manifest(const std::string& folder, const Manifest& manifest);

// Throws BundleError unless an engine's own inputs or outputs are the manifest's. `where` names the
// engine; `side` is "inputs" or "outputs". An axis without a name, of an output or of any tensor
// where the engine does not keep names (`names_axes`), may be any that the manifest names.
void check_signature(const std::string& where, const Graph& graph, const std::string& side,
                     const std::vector<TensorSpec>& found, bool names_axes = true);

// Where a prompt's own fields are, in words.
std::string place_of(const std::string& prompt);

// For the rules of one task, which `check_manifest` asks after those of any.

// Ends the search at the first problem.
struct Problem {
  std::string text;
};
// Throws Problem unless it holds.
void require(bool holds, const std::string& problem);

using Shape = std::vector<Axis>;
std::string text_of(const Shape& shape);
// What a tensor at some place of a signature must be.
struct Wanted {
  TensorRole role;
  std::string dtype;
  Shape shape;
};
// Throws Problem naming the first of a graph's tensors that is not what its place needs. `side` is
// "inputs" or "outputs".
void require_alike(const std::string& side, const std::vector<TensorSpec>& found,
                   const std::vector<Wanted>& wanted);

}  // namespace ptdeploy::detail
