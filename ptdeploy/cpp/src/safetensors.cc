#include "safetensors.hpp"

#include <fstream>

#include "ptdeploy/ptdeploy.hpp"
#include "schema.hpp"

namespace ptdeploy::detail {
namespace {

constexpr std::uint64_t kMaxHeader = 100'000'000;

struct Entry {
  std::string dtype;
  std::vector<std::int64_t> shape, offsets;
};

Entry find(const Json& header, const std::string& name) {
  auto* members = std::get_if<Json::Object>(&header.value);
  if (!members) throw SchemaError("its header is no object");
  auto number = [](const Json& json, const Where& where) { return read_int(json, where); };
  for (const auto& [key, value] : *members) {
    if (key != name) continue;
    Entry entry;
    const Where where;
    read_object(
        value, where,
        {{"dtype", true,
          [&](const Json& json, const Where& at) { entry.dtype = read_string(json, at); }},
         {"shape", true,
          [&](const Json& json, const Where& at) { entry.shape = read_array(json, at, number); }},
         {"data_offsets", true, [&](const Json& json, const Where& at) {
            entry.offsets = read_array(json, at, number);
          }}});
    return entry;
  }
  throw SchemaError(quoted(name));
}

// Bytes of a float32 tensor of that shape. Throws SchemaError if no file could hold them.
std::uint64_t bytes_of(const std::vector<std::int64_t>& shape, std::uint64_t most) {
  std::uint64_t bytes = sizeof(float);
  for (std::int64_t size : shape) {
    if (size < 0 || (size > 0 && bytes > most / static_cast<std::uint64_t>(size)))
      throw SchemaError("its shape does not fit the file");
    bytes *= static_cast<std::uint64_t>(size);
  }
  return bytes;
}

FloatTensor read(std::ifstream& stream, const std::string& name) {
  stream.seekg(0, std::ios::end);
  const auto size = static_cast<std::uint64_t>(stream.tellg());
  stream.seekg(0);
  unsigned char length[8];
  if (size < sizeof length || !stream.read(reinterpret_cast<char*>(length), sizeof length))
    throw SchemaError("header too small");
  std::uint64_t header_size = 0;
  for (int i = 7; i >= 0; --i) header_size = header_size << 8 | length[i];
  if (header_size > kMaxHeader || header_size > size - sizeof length)
    throw SchemaError("invalid header length");
  std::string header(header_size, '\0');
  stream.read(header.data(), static_cast<std::streamsize>(header_size));
  const Entry entry = find(parse_json(header), name);
  const std::uint64_t room = size - sizeof length - header_size;
  if (entry.dtype != "F32") throw SchemaError("it is " + entry.dtype + ", not F32");
  const std::uint64_t bytes = bytes_of(entry.shape, room);
  if (entry.offsets.size() != 2 || entry.offsets[0] < 0 || entry.offsets[1] < entry.offsets[0] ||
      static_cast<std::uint64_t>(entry.offsets[1]) > room ||
      static_cast<std::uint64_t>(entry.offsets[1] - entry.offsets[0]) != bytes)
    throw SchemaError("its offsets do not fit its shape");
  FloatTensor tensor{entry.shape, std::vector<float>(bytes / sizeof(float))};
  stream.seekg(static_cast<std::streamoff>(sizeof length + header_size) +
               static_cast<std::streamoff>(entry.offsets[0]));
  if (bytes > 0)
    stream.read(reinterpret_cast<char*>(tensor.values.data()), static_cast<std::streamsize>(bytes));
  if (!stream) throw SchemaError("the file is cut short");
  return tensor;
}

}  // namespace

FloatTensor read_float_tensor(const std::string& file, const std::string& name) {
  static_assert(sizeof(float) == 4, "safetensors' F32 is read as it lies");
  std::string reason;
  try {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw SchemaError("it cannot be read");
    return read(stream, name);
  } catch (const SchemaError& error) {
    reason = error.what();
  } catch (const JsonError& error) {
    reason = error.what();
  }
  throw BundleError(file + ": holds no prefix KV (" + reason + ").");
}

}  // namespace ptdeploy::detail
