// A safetensors file: its header read and checked, its tensors read one by one.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace ptdeploy::detail {

// Only the header is kept in memory. As the format asks, tensors lie side by side and fill the
// file, so that all of them together are no larger than it. Throws SchemaError or JsonError.
class Safetensors {
 public:
  explicit Safetensors(const std::string& file);

  // The text under this key of the file's metadata.
  const std::string& metadata(const std::string& key) const;
  bool has(const std::string& name) const { return entries_.count(name) > 0; }
  const std::string& dtype(const std::string& name) const;
  // A tensor's shape; throws unless it is there and of that element type ("F32", "I64").
  const std::vector<std::int64_t>& shape(const std::string& name, const std::string& dtype) const;
  std::vector<float> floats(const std::string& name);
  std::vector<std::int64_t> integers(const std::string& name);

 private:
  struct Entry {
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t begin = 0, end = 0;  // in the file
  };

  const Entry& entry(const std::string& name, const std::string& dtype) const;
  template <class T>
  std::vector<T> read(const Entry& entry);

  std::ifstream stream_;
  std::map<std::string, Entry> entries_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

}  // namespace ptdeploy::detail
