// manifest.json as types; the fields are those of docs/bundle.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy::detail {

using StringMap = std::vector<std::pair<std::string, std::string>>;
using Axis = std::variant<std::int64_t, std::string>;

struct FileEntry {
  std::string path, role;
  std::int64_t size = 0;
  std::string sha256;
};

struct TensorSpec {
  std::string name, dtype;
  std::vector<Axis> shape;
  std::string meaning;
};

struct PromptInfo {
  std::string kind;
  std::int64_t num_virtual_tokens = 0, token_dim = 0;
  std::string sha256;
  std::optional<std::vector<std::int64_t>> prefix_kv;
};

struct Limits {
  std::int64_t max_sequence = 0, max_context = 0, vocab_size = 0;
  std::optional<std::int64_t> max_batch, max_prefill;
  std::int64_t type_vocab_size = 0;
};

// How weights are rounded, and what they must keep on text, against the reference.
struct Quantization {
  std::int64_t bits = 0, block_size = 0, accuracy_level = 0;
  double min_agreement = 0, max_perplexity_ratio = 0;
  std::optional<double> max_logits_error;
};

// What a request chooses tokens with; the defaults are the manifest's own.
struct GenerationOptions {
  std::int64_t max_new_tokens = 128, min_new_tokens = 0;
  bool do_sample = false;
  double temperature = 1.0;
  std::int64_t top_k = 0;
  double top_p = 1.0, min_p = 0.0, repetition_penalty = 1.0;
  std::vector<std::int64_t> eos_token_ids;
};

// Fields that are only checked, and used by nobody who runs a bundle, are not kept.
struct Manifest {
  std::string target, device, precision;
  Task task{};
  std::vector<TensorSpec> inputs, outputs;
  PromptInfo prompt;
  Limits limits;
  std::vector<std::string> labels;
  Head head{};
  bool fused = false;
  std::optional<Quantization> quantization;
  std::optional<GenerationOptions> generation;
  std::vector<FileEntry> files;
};

// `file` names the manifest in messages. Throws BundleError.
Manifest parse_manifest(const std::string& text, const std::string& file);

}  // namespace ptdeploy::detail
