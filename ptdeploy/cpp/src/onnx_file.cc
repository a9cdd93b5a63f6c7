// Only as much of the format as leads to tensors: https://onnx.ai/onnx/repo-docs/IR.html. Whatever
// else a message holds is stepped over. Python reads it alike (targets/onnx_file.py).
#include "onnx_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <string_view>
#include <vector>

#include "utf8.hpp"

namespace ptdeploy::detail {
namespace {

enum class Message { model, training, function, graph, node, attribute, sparse, tensor, entry };

// The message that a field holds, in all places where a tensor can stand.
std::optional<Message> inside(Message kind, std::uint64_t number) {
  switch (kind) {
    case Message::model:
      if (number == 7) return Message::graph;
      if (number == 20) return Message::training;
      if (number == 25) return Message::function;
      break;
    case Message::training:
      if (number == 1 || number == 2) return Message::graph;
      break;
    case Message::function:
      if (number == 7) return Message::node;
      if (number == 11) return Message::attribute;
      break;
    case Message::graph:
      if (number == 1) return Message::node;
      if (number == 5) return Message::tensor;
      if (number == 15) return Message::sparse;
      break;
    case Message::node:
      if (number == 5) return Message::attribute;
      break;
    case Message::attribute:
      if (number == 5 || number == 10) return Message::tensor;
      if (number == 6 || number == 11) return Message::graph;
      if (number == 22 || number == 23) return Message::sparse;
      break;
    case Message::sparse:
      if (number == 1 || number == 2) return Message::tensor;
      break;
    case Message::tensor:
      if (number == 13) return Message::entry;
      break;
    case Message::entry:
      break;
  }
  return std::nullopt;
}

// Fields that are text: an entry's key and value, a tensor's name, a node's inputs, outputs and
// operator.
bool is_text(Message kind, std::uint64_t number) {
  return (kind == Message::entry && (number == 1 || number == 2)) ||
         (kind == Message::tensor && number == 8) ||
         (kind == Message::node && (number == 1 || number == 2 || number == 4));
}

// As protobuf's own readers have it. Those cut a field's number off past its bits, so that a larger
// one would be another field's to them.
constexpr int kDepth = 100;
constexpr std::uint64_t kMostBytes = 2147483647, kMostNumber = (1 << 29) - 1;
// A decoder of 24 layers has 7,000 fields.
constexpr std::size_t kMostFields = 1 << 20;
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// What keeps ids within bounds.
bool is_bound(const std::string& op) { return op == "Clip" || op == "Min" || op == "Max"; }

class Reader {
 public:
  explicit Reader(const std::string& ids) : ids_{ids} {}
  OnnxFile found;

  void walk(Message kind, std::string_view bytes, int depth) {
    if (depth > kDepth) throw OnnxError("nested too deeply");
    std::map<std::uint64_t, std::vector<std::string>> texts;
    std::optional<std::int64_t> first_size;
    while (!bytes.empty()) {
      const std::uint64_t tag = varint(bytes), number = tag >> 3;
      const int wire = static_cast<int>(tag & 7);
      if (number < 1 || number > kMostNumber)
        throw OnnxError("a field has the number " + std::to_string(number));
      if (++fields_ > kMostFields)
        throw OnnxError("it has over " + std::to_string(kMostFields) + " fields");
      std::uint64_t value = 0;
      std::string_view part;
      if (wire == kVarint)
        value = varint(bytes);
      else
        part = field(wire, bytes);
      if (const auto message = inside(kind, number)) {
        if (wire != kBytes) throw OnnxError("a message is written as a number");
        walk(*message, part, depth + 1);
      } else if (wire == kBytes && is_text(kind, number)) {
        if (!is_utf8(part)) throw OnnxError("a name is not UTF-8");
        texts[number].emplace_back(part);
      } else if (kind == Message::tensor && number == 1 && !first_size) {
        if (wire == kVarint)
          first_size = static_cast<std::int64_t>(value);
        else if (!part.empty())
          first_size = static_cast<std::int64_t>(varint(part));
      }
    }
    auto last = [&texts](std::uint64_t number) {
      const auto place = texts.find(number);
      return place == texts.end() ? std::string() : place->second.back();
    };
    if (kind == Message::entry && last(1) == "location")
      found.external.insert(last(2));
    else if (kind == Message::tensor && depth == 2 && first_size && texts.count(8))
      sizes_[last(8)] = *first_size;
    else if (kind == Message::node && depth == 2 && texts[4].size() == 1)
      follow_ids(texts[4][0], texts[1], texts[2]);
  }

  void count_words() {
    std::set<std::optional<std::int64_t>> rows;
    for (const std::string& name : tables_) {
      const auto place = sizes_.find(name);
      rows.insert(place == sizes_.end() ? std::nullopt : std::optional(place->second));
    }
    if (rows.size() == 1) found.words = *rows.begin();
  }

 private:
  static std::uint64_t varint(std::string_view& bytes) {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 70 && !bytes.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes[0]);
      bytes.remove_prefix(1);
      value |= shift < 64 ? std::uint64_t{byte & 0x7Fu} << shift : 0;
      if (byte < 0x80) return value;
    }
    throw OnnxError("a number is cut short");
  }

  static std::string_view field(int wire, std::string_view& bytes) {
    std::uint64_t size = 0;
    if (wire == kBytes)
      size = varint(bytes);
    else if (wire == kFixed32 || wire == kFixed64)
      size = wire == kFixed32 ? 4 : 8;
    else
      throw OnnxError("a field of an unknown type");
    if (size > bytes.size()) throw OnnxError("a field ends behind its message");
    const std::string_view part = bytes.substr(0, size);
    bytes.remove_prefix(size);
    return part;
  }

  void follow_ids(const std::string& op, const std::vector<std::string>& inputs,
                  const std::vector<std::string>& outputs) {
    if (op == "Gather" && inputs.size() == 2 && ids_.count(inputs[1]) > 0)
      tables_.insert(inputs[0]);
    else if (is_bound(op) && !inputs.empty() && ids_.count(inputs[0]) > 0)
      ids_.insert(outputs.begin(), outputs.end());
  }

  // The first axis of each constant of the main graph, and those that token ids look up.
  std::map<std::string, std::int64_t> sizes_;
  std::set<std::string> tables_, ids_;
  std::size_t fields_ = 0;
};

// A file's bytes, where it lies in memory once.
class Mapped {
 public:
  explicit Mapped(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat found {};
    std::string problem = "it cannot be read";
    if (descriptor >= 0 && ::fstat(descriptor, &found) == 0) {
      size_ = static_cast<std::size_t>(found.st_size);
      problem = problem_of(static_cast<std::uint64_t>(found.st_size));
      if (problem.empty()) {
        place_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (place_ == MAP_FAILED) problem = "it cannot be mapped into memory";
      }
    }
    if (descriptor >= 0) ::close(descriptor);
    if (!problem.empty()) throw OnnxError(problem);
  }
  ~Mapped() { ::munmap(place_, size_); }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  std::string_view bytes() const { return {static_cast<const char*>(place_), size_}; }

 private:
  static std::string problem_of(std::uint64_t size) {
    if (size == 0) return "cannot mmap an empty file";
    if (size <= kMostBytes) return "";
    return "it has " + std::to_string(size) + " bytes; at most " + std::to_string(kMostBytes) +
           " are read";
  }

  void* place_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace

OnnxFile read_onnx_file(const std::string& path, const std::string& ids) {
  const Mapped content(path);
  Reader reader(ids);
  reader.walk(Message::model, content.bytes(), 0);
  reader.count_words();
  return std::move(reader.found);
}

}  // namespace ptdeploy::detail
