#include "manifest.hpp"

#include "fields.hpp"

namespace ptdeploy::detail {
namespace {

constexpr const char* kTensorRoles[] = {"ids",    "mask",    "segments", "lengths", "positions",
                                        "offsets", "past",   "present",  "logits",  "table",
                                        "prefix",  "head",   "prompt"};

Axis read_axis(const Json& json, const Where& where) {
  if (auto* name = std::get_if<std::string>(&json.value)) return *name;
  return read_int(json, where, "int | str");
}

TensorSpec read_tensor(const Json& json, const Where& where) {
  TensorSpec out;
  auto role = [&out](const Json& value, const Where& at) {
    out.role = static_cast<TensorRole>(read_word(value, at, kTensorRoles));
  };
  read_object(json, where,
              {{"name", true, into(out.name)},
               {"role", true, role},
               {"dtype", true, into(out.dtype)},
               {"shape", true, array_into(out.shape, read_axis)},
               {"meaning", true, into(out.meaning)}});
  return out;
}

FileEntry read_file(const Json& json, const Where& where) {
  FileEntry out;
  auto role = [&out](const Json& value, const Where& at) {
    read_word(value, at,
              {"model", "weights", "engine", "engine_info", "prompt", "tokenizer", "chat_template",
               "tokenizer_program", "tokenizer_weights", "reference", "parity", "graph_parity"});
    out.role = read_string(value, at);
  };
  read_object(json, where,
              {{"path", true, into(out.path)},
               {"role", true, role},
               {"size", true, into(out.size)},
               {"sha256", true, into(out.sha256)},
               {"of", false, into(out.of, string_or_null)}});
  return out;
}

Limits read_limits(const Json& json, const Where& where) {
  Limits out;
  read_object(json, where,
              {{"max_context", true, into(out.max_context)},
               {"vocab_size", true, into(out.vocab_size)},
               {"max_batch", false, into(out.max_batch, number_or_null)},
               {"max_prefill", false, into(out.max_prefill, number_or_null)},
               {"type_vocab_size", false, into(out.type_vocab_size)}});
  return out;
}

Graph read_graph(const Json& json, const Where& where) {
  Graph out;
  auto route = [&out](const Json& value, const Where& at) {
    out.fused = read_word(value, at, {"fused", "plain"}) == 0;
  };
  read_object(json, where,
              {{"route", true, route},
               {"reason", true, skip_string},
               {"inputs", true, array_into(out.inputs, read_tensor)},
               {"outputs", true, array_into(out.outputs, read_tensor)}});
  return out;
}

std::optional<Quantization> read_quantization(const Json& json, const Where& where) {
  if (is_null(json)) return std::nullopt;
  Quantization out;
  auto type = [](const Json& value, const Where& at) {
    read_word(value, at, {"int", "float8e4m3fn"});
  };
  auto activations = [](const Json& value, const Where& at) {
    read_word(value, at, {"float", "int8"});
  };
  auto maybe = [](std::optional<double>& bound) {
    return [&bound](const Json& value, const Where& at) {
      bound.reset();
      if (!is_null(value)) bound = read_float(value, at, "float | null");
    };
  };
  read_object(json, where,
              {{"bits", true, into(out.bits)},
               {"block_size", true, into(out.block_size)},
               {"accuracy_level", true, into(out.accuracy_level)},
               {"min_agreement", true, into(out.min_agreement)},
               {"max_perplexity_ratio", true, into(out.max_perplexity_ratio)},
               {"type", false, type},
               {"max_logits_error", false, maybe(out.max_logits_error)},
               {"activations", false, activations},
               {"share", false, into(out.share)},
               {"min_class_agreement", false, maybe(out.min_class_agreement)},
               {"calibrated", false, into(out.calibrated)}},
              "object | null");
  return out;
}

std::optional<GenerationOptions> read_generation(const Json& json, const Where& where) {
  if (is_null(json)) return std::nullopt;
  GenerationOptions out;
  read_object(json, where,
              {{"max_new_tokens", false, into(out.max_new_tokens)},
               {"min_new_tokens", false, into(out.min_new_tokens)},
               {"do_sample", false, into(out.do_sample)},
               {"temperature", false, into(out.temperature)},
               {"top_k", false, into(out.top_k)},
               {"top_p", false, into(out.top_p)},
               {"min_p", false, into(out.min_p)},
               {"repetition_penalty", false, into(out.repetition_penalty)},
               {"eos_token_ids", false, array_into(out.eos_token_ids, number)}},
              "object | null");
  return out;
}

// Gives whether decoded text is cleaned up; what else it says is checked, and used by nobody.
bool read_tokenizer(const Json& json, const Where& where) {
  bool cleans_up = false;
  if (is_null(json)) return cleans_up;
  auto origin = [](const Json& value, const Where& at) {
    read_word(value, at, {"checkpoint", "base", "given"});
  };
  read_object(json, where,
              {{"origin", true, origin},
               {"type", true, skip_string},
               {"size", true, skip_int},
               {"split_special_tokens", false, skip_bool},
               {"clean_up_tokenization_spaces", false, into(cleans_up)},
               {"gives_token_type_ids", false, skip_bool}},
              "object | null");
  return cleans_up;
}

void read_parity(const Json& json, const Where& where) {
  if (is_null(json)) return;
  auto ratio = [](const Json& value, const Where& at) {
    if (!is_null(value)) read_float(value, at, "float | null");
  };
  read_object(json, where,
              {{"passed", true, skip_bool},
               {"cases", true, skip_int},
               {"max_abs", true, skip_float},
               {"top1_agreement", true, skip_float},
               {"reference", true, skip_string},
               {"perplexity_ratio", false, ratio}},
              "object | null");
}

void check_source(const Json& json, const Where& where) {
  read_object(json, where,
              {{"format", true, skip_string},
               {"adapter", true, skip_string},
               {"files", true, skip_string_map},
               {"task_id", false, skip_int_or_null}});
}

PromptInfo read_prompt(const Json& json, const Where& where) {
  PromptInfo out;
  auto prefix_kv = [&out](const Json& value, const Where& at) {
    out.prefix_kv.reset();
    if (!is_null(value)) out.prefix_kv = read_array(value, at, number, "array | null");
  };
  auto head = [&out](const Json& value, const Where& at) {
    out.head = static_cast<Head>(read_word(value, at, {"softmax", "sigmoid", "regression"}));
  };
  read_object(json, where,
              {{"kind", true, into(out.kind)},
               {"num_virtual_tokens", true, into(out.num_virtual_tokens)},
               {"token_dim", true, into(out.token_dim, number_or_null)},
               {"sha256", true, into(out.sha256)},
               {"prefix_kv", true, prefix_kv},
               {"labels", false, array_into(out.labels, read_string)},
               {"head", false, head},
               {"padding_id", false, into(out.padding_id, number_or_null)},
               {"source", true, check_source},
               {"parity", false, read_parity},
               {"graph_parity", false, read_parity}});
  return out;
}

void read_base(const Json& json, const Where& where) {
  read_object(json, where,
              {{"name", true, skip_string},
               {"architecture", true, skip_string},
               {"config_sha256", true, skip_string},
               {"weights_sha256", true, skip_string},
               {"parity", false, read_parity},
               {"graph_parity", false, read_parity}});
}

struct Header {
  std::string format;
  std::int64_t version = 0;
};

Header read_header(const Json& json) {
  Header out;
  read_object(json, Where(),
              {{"format", true, into(out.format)}, {"format_version", true, into(out.version)}},
              "object", Unknown::skipped);
  return out;
}

// The two fields that every version has come first: another version's other fields mean nothing.
void check_version(const Json& json, const std::string& file, const FolderKind& kind) {
  const Header found = read_header(json);
  if (found.format == kBundle.format && &kind != &kBundle)
    throw BundleError(file + ": is a bundle, not a " + kind.noun + ".",
                      "Load it with ptdeploy.load, or run it with ptdeploy run.");
  if (found.format == kPack.format && &kind != &kPack)
    throw BundleError(file + ": is a pack, which holds a prompt and no engine, not a " + kind.noun +
                          ".",
                      "Put it into a bundle (ptdeploy prompt add BUNDLE PACK), or load it into an "
                      "open engine (engine.load_prompt).");
  if (found.format != kind.format || found.version != kind.version)
    throw BundleError(file + ": is " + quoted(found.format) + " version " +
                          std::to_string(found.version) + "; this ptdeploy reads " +
                          quoted(kind.format) + " version " + std::to_string(kind.version) + ".",
                      std::string("Compile the checkpoint again, or install the ptdeploy that made "
                                  "the ") +
                          kind.noun + ".");
}

std::size_t read_task(const Json& json, const Where& where) {
  return read_word(json, where, {"SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM"});
}

auto format_of(const FolderKind& kind) {
  return [&kind](const Json& value, const Where& at) { read_word(value, at, &kind.format, 1); };
}

Manifest read_manifest(const Json& json) {
  Manifest out;
  auto task = [&out](const Json& value, const Where& at) {
    out.task = static_cast<Task>(read_task(value, at));
  };
  read_object(json, Where(),
              {{"format", false, format_of(kBundle)},
               {"format_version", false, skip_int},
               {"versions", true, skip_string_map},
               {"target", true, into(out.target)},
               {"device", true, into(out.device)},
               {"precision", true, into(out.precision)},
               {"task", true, task},
               {"graphs", true, map_into(out.graphs, read_graph)},
               {"prompts", true, map_into(out.prompts, read_prompt)},
               {"default_prompt", true, into(out.default_prompt, string_or_null)},
               {"base", true, read_base},
               {"limits", true, into(out.limits, read_limits)},
               {"quantization", false, into(out.quantization, read_quantization)},
               {"generation", false, into(out.generation, read_generation)},
               {"tokenizer", false, into(out.cleans_up, read_tokenizer)},
               {"files", true, array_into(out.files, read_file)}});
  return out;
}

PackManifest read_pack_manifest(const Json& json) {
  PackManifest out;
  auto task = [](const Json& value, const Where& at) { read_task(value, at); };
  read_object(json, Where(),
              {{"format", false, format_of(kPack)},
               {"format_version", false, skip_int},
               {"versions", true, skip_string_map},
               {"name", true, into(out.name)},
               {"task", true, task},
               {"target", true, skip_string},
               {"device", true, skip_string},
               {"precision", true, skip_string},
               {"engine_sha256", true, into(out.engine_sha256)},
               {"base", true, read_base},
               {"prompt", true, into(out.prompt, read_prompt)},
               {"files", true, array_into(out.files, read_file)}});
  return out;
}

template <class T>
T parse(const std::string& text, const std::string& file, const FolderKind& kind,
        T (*read)(const Json&)) {
  std::string reason;
  try {
    const Json json = parse_json(text);
    check_version(json, file, kind);
    return read(json);
  } catch (const JsonError& error) {
    reason = error.what();
  } catch (const SchemaError& error) {
    reason = error.what();
  }
  throw BundleError(file + ": not a valid manifest (" + reason + ").",
                    "Compile the checkpoint again, or install the ptdeploy that made it.");
}

}  // namespace

const FolderKind kBundle = {"ptdeploy-bundle", 4, "bundle",
                            "ptdeploy compile CHECKPOINT --target ort -o BUNDLE"};
const FolderKind kPack = {"ptdeploy-prompt", 1, "pack",
                          "ptdeploy compile CHECKPOINT --over BUNDLE -o PACK"};

const char* name_of(TensorRole role) { return kTensorRoles[static_cast<std::size_t>(role)]; }

Quantization Quantization::of_head(Head head) const {
  Quantization out = *this;
  out.min_class_agreement.reset();
  if (min_class_agreement && head == Head::softmax) out.min_agreement = *min_class_agreement;
  return out;
}

const TensorSpec* Graph::input(TensorRole role) const {
  for (const TensorSpec& spec : inputs)
    if (spec.role == role) return &spec;
  return nullptr;
}

const Graph& Manifest::graph() const { return *find(graphs, kModel); }

const PromptInfo& Manifest::prompt() const {
  static const PromptInfo none{};
  return default_prompt ? *find(prompts, *default_prompt) : none;
}

Manifest parse_manifest(const std::string& text, const std::string& file) {
  return parse(text, file, kBundle, read_manifest);
}

PackManifest parse_pack(const std::string& text, const std::string& file) {
  return parse(text, file, kPack, read_pack_manifest);
}

bool says_pack(const std::string& text) {
  try {
    return read_header(parse_json(text)).format == kPack.format;
  } catch (const JsonError&) {
    return false;
  } catch (const SchemaError&) {
    return false;
  }
}

}  // namespace ptdeploy::detail
