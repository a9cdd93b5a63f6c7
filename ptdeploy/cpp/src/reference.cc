#include "reference.hpp"

#include <algorithm>
#include <cmath>

#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

std::string tensor_name(const char* kind, std::size_t index, const char* what) {
  const std::string digits = std::to_string(index);
  return std::string(kind) + "." + std::string(digits.size() < 3 ? 3 - digits.size() : 0, '0') +
         digits + "." + what;
}

// As Python prints a tuple.
std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "(";
  for (std::size_t i = 0; i < shape.size(); ++i)
    out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

}  // namespace

template <class Body>
auto Reference::checked(Body body) const {
  std::string reason;
  try {
    return body();
  } catch (const SchemaError& error) {
    reason = error.what();
  } catch (const JsonError& error) {
    reason = error.what();
  }
  throw BundleError(file_ + ": not a stored reference (" + reason + ").",
                    "Compile the checkpoint again.");
}

Reference::Reference(const std::string& file, const std::string& opened, const EngineState& engine,
                     const PromptInfo& prompt)
    : file_(file),
      engine_(engine),
      head_(prompt.head),
      columns_(engine.task->columns(prompt)),
      max_sequence_(engine.manifest().limits.max_context - prompt.num_virtual_tokens) {
  checked([&] {
    tensors_.emplace(opened);
    read_metadata();
  });
}

void Reference::read_metadata() {
  metadata_ = read_reference_metadata(tensors_->metadata("ptdeploy"));
  // A count that is too large ends here, at the first tensor that is not there.
  for (std::size_t i = 0; i < metadata_.rows; ++i) length(tensor_name("rows", i, "ids"), "I64");
  for (std::size_t i = 0; i < metadata_.greedy; ++i) length(tensor_name("greedy", i, "ids"), "I64");
  for (std::size_t i = 0; i < metadata_.evaluation; ++i)
    length(tensor_name("evaluation", i, "ids"), "I64");
  cases_ = named_cases(metadata_);
  if (metadata_.rows == 0) throw SchemaError("it holds no rows");
  if (cases_.empty()) throw SchemaError("it holds no cases");
  const auto& most = engine_.manifest().limits.max_batch;
  for (std::size_t i = 0; most && i < cases_.size(); ++i)
    if (static_cast<std::int64_t>(cases_[i].rows.size()) > *most)
      throw SchemaError("cases[" + std::to_string(i) + "] has " +
                        std::to_string(cases_[i].rows.size()) +
                        " rows, but the bundle takes at most " + std::to_string(*most));
}

std::size_t Reference::length(const std::string& name, const std::string& dtype) const {
  const auto& shape = tensors_->shape(name, dtype);
  if (shape.size() != 1)
    throw SchemaError(name + " has shape " + shape_text(shape) + ", but is a list");
  return static_cast<std::size_t>(shape[0]);
}

void Reference::require_length(const std::string& name, const std::string& dtype,
                               std::size_t wanted) const {
  const std::size_t found = length(name, dtype);
  if (found != wanted)
    throw SchemaError(name + " has " + std::to_string(found) + " entries, not " +
                      std::to_string(wanted));
}

// Token ids that the engine takes.
Ids Reference::ids(const std::string& name) {
  const Limits& limits = engine_.manifest().limits;
  const std::size_t size = length(name, "I64");
  if (size < 1 || static_cast<std::int64_t>(size) > max_sequence_)
    throw SchemaError(name + " has " + std::to_string(size) +
                      " tokens, but the bundle takes 1 to " +
                      std::to_string(max_sequence_));
  Ids found = tensors_->integers(name);
  for (std::int64_t id : found)
    if (id < 0 || id >= limits.vocab_size)
      throw SchemaError(name + " holds a token id outside 0 to " +
                        std::to_string(limits.vocab_size - 1));
  return found;
}

// The segment of each token, as the engine takes them; none where none are stored.
Ids Reference::segments(const std::string& name, std::size_t tokens) {
  if (!tensors_->has(name)) return {};
  const std::int64_t most = engine_.manifest().limits.type_vocab_size;
  require_length(name, "I64", tokens);
  Ids found = tensors_->integers(name);
  for (std::int64_t segment : found)
    if (segment < 0 || segment >= most)
      throw SchemaError(name + " holds a segment that the bundle does not take: it has " +
                        std::to_string(most));
  return found;
}

ReferenceRow Reference::row(std::size_t index) {
  return checked([&] {
    ReferenceRow row{ids(tensor_name("rows", index, "ids")), {}, {}};
    row.type_ids = segments(tensor_name("rows", index, "type_ids"), row.ids.size());
    const std::string name = tensor_name("rows", index, "logits");
    const auto& shape = tensors_->shape(name, "F32");
    const bool one = engine_.kind().one_answer;
    const auto columns = static_cast<std::int64_t>(columns_);
    const auto tokens = static_cast<std::int64_t>(row.ids.size());
    const bool fits =
        one ? shape == std::vector<std::int64_t>{columns}
            : shape.size() == 2 && shape[0] >= 1 && shape[0] <= tokens && shape[1] == columns;
    if (!fits)
      throw SchemaError(name + " has shape " + shape_text(shape) + ", but the engine gives " +
                        shape_text(one ? std::vector<std::int64_t>{columns}
                                       : std::vector<std::int64_t>{tokens, columns}));
    row.logits = {one ? 1 : static_cast<std::size_t>(shape[0]), columns_,
                  tensors_->floats(name)};
    for (float value : row.logits.values)
      if (!std::isfinite(value)) throw SchemaError(name + " holds a number that is not finite");
    return row;
  });
}

Logits Reference::without_prompt(std::size_t index) {
  return checked([&]() -> Logits {
    const std::string name = tensor_name("rows", index, "without_prompt");
    if (!tensors_->has(name)) return {};
    const auto& shape = tensors_->shape(tensor_name("rows", index, "logits"), "F32");
    const std::size_t rows = shape.size() == 1 ? 1 : static_cast<std::size_t>(shape[0]);
    return {rows, columns_, logits(name, shape)};
  });
}

// Logits of that shape.
std::vector<float> Reference::logits(const std::string& name,
                                     const std::vector<std::int64_t>& wanted) {
  const auto& shape = tensors_->shape(name, "F32");
  if (shape != wanted)
    throw SchemaError(name + " has shape " + shape_text(shape) + ", not " + shape_text(wanted));
  std::vector<float> found = tensors_->floats(name);
  for (float value : found)
    if (!std::isfinite(value)) throw SchemaError(name + " holds a number that is not finite");
  return found;
}

ReferenceGreedy Reference::greedy(std::size_t index) {
  return continued(tensor_name("greedy", index, ""));
}

std::optional<ReferenceGreedy> Reference::base_greedy() {
  if (!tensors_->has("without_prompt.ids")) return std::nullopt;
  return continued("without_prompt.");
}

// `place` is the start of its tensors' names.
ReferenceGreedy Reference::continued(const std::string& place) {
  return checked([&] {
    ReferenceGreedy row{ids(place + "ids"), {}, {}};
    const std::string tokens = place + "tokens";
    const auto room =
        static_cast<std::size_t>(max_sequence_) - row.ids.size();
    const std::size_t steps = length(tokens, "I64");
    if (steps < 1 || steps > room)
      throw SchemaError(tokens + " has " + std::to_string(steps) +
                        " tokens, but its text leaves room for " + std::to_string(room));
    const std::string margins = place + "margins";
    require_length(margins, "F32", steps);
    row.tokens = tensors_->integers(tokens);
    row.margins = tensors_->floats(margins);
    return row;
  });
}

EvaluationText Reference::evaluation(std::size_t index) {
  return checked([&] {
    EvaluationText row;
    const bool writes = engine_.kind().writes;
    row.ids = ids(tensor_name("evaluation", index, "ids"));
    row.type_ids = segments(tensor_name("evaluation", index, "type_ids"), row.ids.size());
    const std::string top1 = tensor_name("evaluation", index, "top1");
    const std::string nll = tensor_name("evaluation", index, "nll");
    require_length(top1, "I64", engine_.kind().positions(row.ids.size()));
    require_length(nll, "F32", writes ? row.ids.size() - 1 : 0);
    row.top1 = tensors_->integers(top1);
    row.nll = tensors_->floats(nll);
    const auto& quantization = engine_.manifest().quantization;
    const bool asked = !writes &&
                       ((quantization && quantization->max_logits_error) ||
                        head_ != Head::softmax);
    const std::string name = tensor_name("evaluation", index, "logits");
    if (asked || tensors_->has(name)) {
      row.logits = logits(name, {static_cast<std::int64_t>(row.top1.size()),
                                 static_cast<std::int64_t>(columns_)});
    }
    return row;
  });
}

}  // namespace ptdeploy::detail
