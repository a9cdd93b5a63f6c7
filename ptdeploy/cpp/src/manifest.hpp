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
// In the document's order.
template <class T>
using Named = std::vector<std::pair<std::string, T>>;
// The one of a name, or null.
template <class T>
const T* find(const Named<T>& all, const std::string& name) {
  for (const auto& [key, value] : all)
    if (key == name) return &value;
  return nullptr;
}

// The one graph of every task so far.
constexpr const char* kModel = "model";

// `of` names the graph or the prompt that it is a file of; none: of the whole bundle.
struct FileEntry {
  std::string path, role;
  std::int64_t size = 0;
  std::string sha256;
  std::optional<std::string> of;
};

// What a tensor is to whoever runs the graph; in the order of kTensorRoles.
enum class TensorRole {
  ids,
  mask,
  segments,
  lengths,
  positions,
  offsets,
  past,
  present,
  logits,
  table,
  prefix,
  head,
  prompt
};
// By the names of manifests.
const char* name_of(TensorRole role);

struct TensorSpec {
  std::string name;
  TensorRole role{};
  std::string dtype;
  std::vector<Axis> shape;
  std::string meaning;
};

struct Graph {
  bool fused = false;
  std::vector<TensorSpec> inputs, outputs;

  // The first input with this role, or null.
  const TensorSpec* input(TensorRole role) const;
};

struct PromptInfo {
  std::string kind;
  std::int64_t num_virtual_tokens = 0;
  std::optional<std::int64_t> token_dim;  // none of a prefix KV that was trained itself
  std::string sha256;  // of the virtual tokens; of the prefix KV where there are none
  std::optional<std::vector<std::int64_t>> prefix_kv;
  std::vector<std::string> labels;
  Head head{};
  std::optional<std::int64_t> padding_id;  // a classifier answers at the last token that is another
};

struct Limits {
  std::int64_t max_context = 0, vocab_size = 0;
  std::optional<std::int64_t> max_batch, max_prefill;
  std::int64_t type_vocab_size = 0;
};

// How weights are quantized, and what they must keep on text, against the reference.
struct Quantization {
  std::int64_t bits = 0, block_size = 0, accuracy_level = 0;
  double min_agreement = 0, max_perplexity_ratio = 0, share = 1, calibrated = 0;
  std::optional<double> max_logits_error, min_class_agreement;

  // What is asked of a prompt with such a head, as min_agreement.
  Quantization of_head(Head head) const;
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
  Named<Graph> graphs;
  Named<PromptInfo> prompts;
  std::optional<std::string> default_prompt;
  Limits limits;
  std::optional<Quantization> quantization;
  std::optional<GenerationOptions> generation;
  std::vector<FileEntry> files;
  bool cleans_up = false;  // decoded text loses the blanks before punctuation

  // The graph of a bundle that was checked to have it, and the default prompt; where there is none,
  // the base model alone, as one of no tokens.
  const Graph& graph() const;
  const PromptInfo& prompt() const;
};

// A kind of folder with a manifest: what its manifest is, and how to make such a folder.
struct FolderKind {
  const char* format;
  std::int64_t version;
  const char* noun;
  const char* make;
};
extern const FolderKind kBundle, kPack;

// A pack's manifest.json: one prompt in a folder of its own, and the engine it was proven over.
struct PackManifest {
  std::string name, engine_sha256;
  PromptInfo prompt;
  std::vector<FileEntry> files;
};

// `file` names the manifest in messages. Throw BundleError.
Manifest parse_manifest(const std::string& text, const std::string& file);
PackManifest parse_pack(const std::string& text, const std::string& file);
// Whether it says that it is a pack's manifest, in any version, whole or damaged.
bool says_pack(const std::string& text);

}  // namespace ptdeploy::detail
