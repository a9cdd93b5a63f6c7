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

Source read_source(const Json& json, const Where& where) {
  return static_cast<Source>(read_word(json, where, {"random", "text", "data"}));
}

auto count_into(std::size_t& place) {
  return [&place](const Json& json, const Where& where) {
    const std::int64_t count = read_int(json, where);
    if (count < 0) where.fail("Expected `int` >= 0");
    place = static_cast<std::size_t>(count);
  };
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

Reference::Reference(const std::string& file, const EngineState& engine)
    : file_(file), engine_(engine) {
  checked([&] {
    tensors_.emplace(file);
    read_metadata();
  });
}

void Reference::read_metadata() {
  std::size_t rows = 0;
  auto text_into = [](std::string& place) {
    return [&place](const Json& json, const Where& at) { place = read_string(json, at); };
  };
  std::size_t pairs_of_texts = 0;
  auto texts = [&](const Json& json, const Where& at) {
    texts_ = read_array(json, at, read_string).size();
  };
  auto pair = [](const Json& json, const Where& at) {
    auto found = read_array(json, at, read_string);
    if (found.size() != 2) at.fail("Expected `array` of length 2");
    return found;
  };
  auto pairs = [&](const Json& json, const Where& at) {
    pairs_of_texts = read_array(json, at, pair).size();
  };
  auto departure = [&](const Json& json, const Where& at) {
    padded_departure_.reset();
    if (!is_null(json)) padded_departure_ = read_float(json, at, "float | null");
  };
  auto sources = [&](const Json& json, const Where& at) {
    sources_ = read_array(json, at, read_source);
  };
  read_object(parse_json(tensors_->metadata("ptdeploy")), Where(),
              {{"texts", true, texts},
               {"made_by", true, text_into(made_by_)},
               {"padded_departure", true, departure},
               {"rows", true, count_into(rows)},
               {"greedy", true, count_into(greedy_)},
               {"judged", true, count_into(judged_)},
               {"judged_on", true, text_into(judged_on_)},
               {"sources", false, sources},
               {"pairs", false, pairs}});
  texts_ += pairs_of_texts;
  if (rows == 0) throw SchemaError("it holds no rows");
  if (!sources_.empty() && sources_.size() < rows)
    throw SchemaError("its metadata has " + std::to_string(sources_.size()) + " sources for " +
                      std::to_string(rows) + " rows");
  // A count that is too large ends here, at the first tensor that is not there.
  for (std::size_t i = 0; i < rows; ++i) length(tensor_name("rows", i, "ids"), "I64");
  for (std::size_t i = 0; i < greedy_; ++i) length(tensor_name("greedy", i, "ids"), "I64");
  for (std::size_t i = 0; i < judged_; ++i) length(tensor_name("judged", i, "ids"), "I64");
  sources_.resize(rows, Source::random);
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
  if (size < 1 || static_cast<std::int64_t>(size) > limits.max_sequence)
    throw SchemaError(name + " has " + std::to_string(size) +
                      " tokens, but the bundle takes 1 to " + std::to_string(limits.max_sequence));
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
    const auto columns = static_cast<std::int64_t>(engine_.info.columns);
    const auto tokens = static_cast<std::int64_t>(row.ids.size());
    const bool fits =
        one ? shape == std::vector<std::int64_t>{columns}
            : shape.size() == 2 && shape[0] >= 1 && shape[0] <= tokens && shape[1] == columns;
    if (!fits)
      throw SchemaError(name + " has shape " + shape_text(shape) + ", but the engine gives " +
                        shape_text(one ? std::vector<std::int64_t>{columns}
                                       : std::vector<std::int64_t>{tokens, columns}));
    row.logits = {one ? 1 : static_cast<std::size_t>(shape[0]), engine_.info.columns,
                  tensors_->floats(name)};
    for (float value : row.logits.values)
      if (!std::isfinite(value)) throw SchemaError(name + " holds a number that is not finite");
    return row;
  });
}

ReferenceGreedy Reference::greedy(std::size_t index) {
  return checked([&] {
    ReferenceGreedy row{ids(tensor_name("greedy", index, "ids")), {}, {}};
    const std::string tokens = tensor_name("greedy", index, "tokens");
    const auto room =
        static_cast<std::size_t>(engine_.manifest().limits.max_sequence) - row.ids.size();
    const std::size_t steps = length(tokens, "I64");
    if (steps < 1 || steps > room)
      throw SchemaError(tokens + " has " + std::to_string(steps) +
                        " tokens, but its text leaves room for " + std::to_string(room));
    const std::string margins = tensor_name("greedy", index, "margins");
    require_length(margins, "F32", steps);
    row.tokens = tensors_->integers(tokens);
    row.margins = tensors_->floats(margins);
    return row;
  });
}

ReferenceText Reference::judged(std::size_t index) {
  return checked([&] {
    ReferenceText row;
    const bool writes = engine_.kind().writes;
    row.ids = ids(tensor_name("judged", index, "ids"));
    row.type_ids = segments(tensor_name("judged", index, "type_ids"), row.ids.size());
    const std::string top1 = tensor_name("judged", index, "top1");
    const std::string nll = tensor_name("judged", index, "nll");
    require_length(top1, "I64", engine_.kind().positions(row.ids.size()));
    require_length(nll, "F32", writes ? row.ids.size() - 1 : 0);
    row.top1 = tensors_->integers(top1);
    row.nll = tensors_->floats(nll);
    const auto& quantization = engine_.manifest().quantization;
    const bool asked = !writes &&
                       ((quantization && quantization->max_logits_error) ||
                        engine_.info.head != Head::softmax);
    const std::string name = tensor_name("judged", index, "logits");
    if (asked || tensors_->has(name)) {
      const std::vector<std::int64_t> wanted = {static_cast<std::int64_t>(row.top1.size()),
                                                static_cast<std::int64_t>(engine_.info.columns)};
      const auto& shape = tensors_->shape(name, "F32");
      if (shape != wanted)
        throw SchemaError(name + " has shape " + shape_text(shape) + ", not " +
                          shape_text(wanted));
      row.logits = tensors_->floats(name);
      for (float value : row.logits)
        if (!std::isfinite(value)) throw SchemaError(name + " holds a number that is not finite");
    }
    return row;
  });
}

}  // namespace ptdeploy::detail
