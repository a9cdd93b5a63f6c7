#include "safetensors.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <set>

#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

// As in ptdeploy/bundle/tensor_file.py.
constexpr std::uint64_t kMaxHeader = 4 * 1024 * 1024;
constexpr std::size_t kMaxAxes = 8;
constexpr const char* kMetadata = "__metadata__";

std::int64_t integer(const Json& json, const Where& where) { return read_int(json, where); }

// Of all types that the format has. Source: safetensors' own library.
struct ElementBits {
  const char* dtype;
  std::uint64_t bits;
};
constexpr ElementBits kElementBits[] = {
    {"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},      {"F8_E5M2", 8},     {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},        {"F16", 16},    {"BF16", 16},
    {"I32", 32},    {"U32", 32},        {"F32", 32},        {"C64", 64},    {"F64", 64},
    {"I64", 64},    {"U64", 64}};

std::uint64_t times(std::uint64_t number, std::uint64_t factor, const std::string& name) {
  if (factor > 0 && number > std::numeric_limits<std::uint64_t>::max() / factor)
    throw SchemaError(name + " has a shape that does not fit the file");
  return number * factor;
}

// Throws SchemaError if the named tensor's type is none, or it has not so many bytes.
void check_size(const std::string& name, const std::string& dtype,
                const std::vector<std::int64_t>& shape, std::uint64_t bytes) {
  const auto* type = std::find_if(std::begin(kElementBits), std::end(kElementBits),
                                  [&dtype](const ElementBits& one) { return one.dtype == dtype; });
  if (type == std::end(kElementBits))
    throw SchemaError(name + " is of the unknown type " + quoted(dtype));
  std::uint64_t elements = 1;
  for (std::int64_t size : shape) {
    if (size < 0) throw SchemaError(name + " has a shape that does not fit the file");
    elements = times(elements, static_cast<std::uint64_t>(size), name);
  }
  if (times(elements, type->bits, name) != times(bytes, 8, name))
    throw SchemaError(name + " has offsets that do not fit its shape");
}

// Of two members of one name readers take one or the other.
void refuse_twice(const Json& json) {
  const auto* members = std::get_if<Json::Object>(&json.value);
  if (!members) return;
  std::set<std::string> names;
  for (const auto& [name, value] : *members) refuse_twice(value);
  for (const auto& [name, value] : *members)
    if (!names.insert(name).second) throw SchemaError("its header names " + quoted(name) + " twice");
}

std::string read_header(std::ifstream& stream, std::uint64_t size) {
  unsigned char length[8];
  if (size < sizeof length || !stream.read(reinterpret_cast<char*>(length), sizeof length))
    throw SchemaError("header too small");
  std::uint64_t header_size = 0;
  for (int i = 7; i >= 0; --i) header_size = header_size << 8 | length[i];
  if (header_size > kMaxHeader)
    throw SchemaError("its header has " + std::to_string(header_size) + " bytes; at most " +
                      std::to_string(kMaxHeader) + " are read");
  if (header_size > size - sizeof length)
    throw SchemaError("invalid header length");
  std::string header(header_size, '\0');
  if (!stream.read(header.data(), static_cast<std::streamsize>(header_size)))
    throw SchemaError("the file is cut short");
  return header;
}

}  // namespace

Safetensors::Safetensors(const std::string& file) : stream_(file, std::ios::binary) {
  if (!stream_) throw SchemaError("it cannot be read");
  stream_.seekg(0, std::ios::end);
  const auto size = static_cast<std::uint64_t>(stream_.tellg());
  stream_.seekg(0);
  const std::string text = read_header(stream_, size);
  const std::uint64_t start = 8 + text.size(), room = size - start;
  const Json header = parse_json(text);
  refuse_twice(header);
  auto* members = std::get_if<Json::Object>(&header.value);
  if (!members) throw SchemaError("its header is no object");
  for (const auto& [name, value] : *members) {
    if (name == kMetadata) {
      metadata_ = read_string_map(value, Where());
      continue;
    }
    Entry entry;
    std::vector<std::int64_t> offsets;
    read_object(
        value, Where(),
        {{"dtype", true,
          [&](const Json& json, const Where& at) { entry.dtype = read_string(json, at); }},
         {"shape", true,
          [&](const Json& json, const Where& at) { entry.shape = read_array(json, at, integer); }},
         {"data_offsets", true,
          [&](const Json& json, const Where& at) { offsets = read_array(json, at, integer); }}});
    if (entry.shape.size() > kMaxAxes)
      throw SchemaError(name + " has " + std::to_string(entry.shape.size()) + " axes; at most " +
                        std::to_string(kMaxAxes) + " are read");
    if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] ||
        static_cast<std::uint64_t>(offsets[1]) > room)
      throw SchemaError(name + " has offsets that leave the file");
    entry.begin = start + static_cast<std::uint64_t>(offsets[0]);
    entry.end = start + static_cast<std::uint64_t>(offsets[1]);
    check_size(name, entry.dtype, entry.shape, entry.end - entry.begin);
    entries_.emplace(name, std::move(entry));
  }
  std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
  for (const auto& [name, entry] : entries_) places.emplace_back(entry.begin, entry.end);
  std::sort(places.begin(), places.end());
  std::uint64_t at = start;
  for (const auto& [begin, end] : places) {
    if (begin != at) throw SchemaError("tensors do not lie side by side");
    at = end;
  }
  if (at != size) throw SchemaError("tensors do not fill the file");
}

const std::string& Safetensors::metadata(const std::string& key) const {
  for (const auto& [name, text] : metadata_)
    if (name == key) return text;
  throw SchemaError(quoted(key));
}

const Safetensors::Entry& Safetensors::entry(const std::string& name,
                                             const std::string& dtype) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw SchemaError("File does not contain tensor " + name);
  if (found->second.dtype != dtype)
    throw SchemaError(name + " is " + found->second.dtype + ", not " + dtype);
  return found->second;
}

const std::string& Safetensors::dtype(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw SchemaError("File does not contain tensor " + name);
  return found->second.dtype;
}

const std::vector<std::int64_t>& Safetensors::shape(const std::string& name,
                                                    const std::string& dtype) const {
  return entry(name, dtype).shape;
}

template <class T>
std::vector<T> Safetensors::read(const Entry& entry) {
  std::vector<T> values((entry.end - entry.begin) / sizeof(T));
  stream_.seekg(static_cast<std::streamoff>(entry.begin));
  if (!values.empty())
    stream_.read(reinterpret_cast<char*>(values.data()),
                 static_cast<std::streamsize>(values.size() * sizeof(T)));
  if (!stream_) throw SchemaError("the file is cut short");
  return values;
}

std::vector<float> Safetensors::floats(const std::string& name) {
  static_assert(sizeof(float) == 4, "safetensors' F32 is read as it lies");
  return read<float>(entry(name, "F32"));
}

std::vector<std::int64_t> Safetensors::integers(const std::string& name) {
  return read<std::int64_t>(entry(name, "I64"));
}

}  // namespace ptdeploy::detail
