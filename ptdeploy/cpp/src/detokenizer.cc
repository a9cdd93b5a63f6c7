#include "detokenizer.hpp"

#include <algorithm>

#include "layout.hpp"

namespace ptdeploy::detail {
namespace {

// A member; null where it may be missing and is.
const Json& member(const Json& json, const Where& where, const char* name, bool required = true) {
  static const Json kNull{};
  const Json* found = &kNull;
  read_object(json, where,
              {{name, required, [&](const Json& value, const Where&) { found = &value; }}}, "object",
              Unknown::skipped);
  return *found;
}

// A model's tokens: names with ids or, of a unigram model, pieces in the order of their ids.
std::unordered_map<std::string, std::int64_t> read_vocabulary(const Json& json, const Where& where) {
  std::unordered_map<std::string, std::int64_t> out;
  if (std::holds_alternative<Json::Array>(json.value)) {
    const Json::Array& pieces = read_items(json, where);
    for (std::size_t id = 0; id < pieces.size(); ++id) {
      const Json::Array& parts = read_items(pieces[id], where.any());
      if (parts.empty()) where.any().fail("Expected `array` of length 2");
      out[read_string(parts[0], where.any())] = static_cast<std::int64_t>(id);
    }
    return out;
  }
  read_map(json, where, [&](const std::string& name, const Json& value, const Where& at) {
    const std::int64_t id = read_int(value, at);
    if (id < 0 || id > kMost) at.fail("no token has the id " + std::to_string(id));
    out[name] = id;
  });
  return out;
}

}  // namespace

Detokenizer::Detokenizer(const Json& json, bool cleans_up)
    : cleans_up_(cleans_up),
      decoder_(member(json, Where(), "decoder", false), Where().member("decoder")) {
  const Where root, model = root.member("model");
  const Json& vocabulary = member(member(json, root, "model"), model, "vocab");
  const Vocabulary own = read_vocabulary(vocabulary, model.member("vocab"));
  const Json::Array* pieces = std::get_if<Json::Array>(&vocabulary.value);
  for (const auto& [name, id] : own) tokens_[id] = name;
  const Json& added = member(json, root, "added_tokens", false);
  if (is_null(added)) return;
  add(added, root.member("added_tokens"), own,
      pieces ? pieces->size() : own.size());
}

// Added tokens get the ids that the tokenizers library gives them, whatever ids they have in the
// file. Source: its AddedVocabulary::add_tokens.
void Detokenizer::add(const Json& json, const Where& where, const Vocabulary& own,
                      std::size_t own_size) {
  Vocabulary added;
  std::int64_t next = static_cast<std::int64_t>(own_size);
  const Json::Array& items = read_items(json, where);
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Where at = where.item(i);
    const std::string name = read_string(member(items[i], at, "content"), at.member("content"));
    const bool special = read_bool(member(items[i], at, "special"), at.member("special"));
    if (name.empty()) continue;
    if (special) special_.insert(name);
    if (added.count(name) > 0) continue;
    const auto known = own.find(name);
    const std::int64_t id = known != own.end() ? known->second : next;
    added[name] = id;
    tokens_[id] = name;
    next = std::max(next, id + 1);
  }
}

const std::string* Detokenizer::token(std::int64_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second;
}

std::string Detokenizer::decode(const Ids& ids, bool special) const {
  std::vector<std::string> tokens;
  for (const std::int64_t id : ids)
    if (const std::string* name = token(id); name && (special || !is_special(*name)))
      tokens.push_back(*name);
  try {
    std::string text = decoder_.text(std::move(tokens));
    return cleans_up_ ? tidied(std::move(text), false) : text;
  } catch (const SchemaError& error) {
    throw BundleError(std::string("tokenizer.json: its decoder fails on token ids (") +
                          error.what() + ").",
                      kAgain);
  }
}

std::unique_ptr<Detokenizer> open_detokenizer(const Bundle& bundle) {
  const auto content = bundle.content("tokenizer");
  if (!content)
    throw InputError(bundle.path + ": has no tokenizer, so it gives token ids only.",
                     "Ask for neither text nor stop strings.");
  const auto none = [&bundle](const std::exception& error) {
    return BundleError(bundle.file("tokenizer") + ": not a tokenizer (" + error.what() + ").",
                       kAgain);
  };
  try {
    return std::make_unique<Detokenizer>(parse_json(*content), bundle.manifest.cleans_up);
  } catch (const JsonError& error) {
    throw none(error);
  } catch (const SchemaError& error) {
    throw none(error);
  }
}

}  // namespace ptdeploy::detail
