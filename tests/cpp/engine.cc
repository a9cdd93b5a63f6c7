// What is read of engine.json and decided by it, without TensorRT:
//   engine info FILE | engine profile FILE NAME=1,2 ... | engine rebuild BUNDLE 0|1
//   engine fit FILE FLAVOR VERSION GPU MAJOR MINOR
//   engine round TYPE: float32 on standard input to their bytes in a type
#include <iostream>
#include <iterator>
#include <sstream>

#include "element_type.hpp"
#include "engine_fit.hpp"
#include "ptdeploy/ptdeploy.hpp"

namespace {

using namespace ptdeploy::detail;

std::string text_of(const Sizes& shape) {
  std::string out;
  for (std::int64_t size : shape) out += (out.empty() ? "" : ",") + std::to_string(size);
  return out;
}

void print(const EngineInfo& info) {
  std::cout << name_of(info.flavor) << '\n' << info.version << '\n' << info.gpu << '\n';
  for (const std::string& one : info.compute_capabilities) std::cout << one << ' ';
  std::cout << '\n';
  for (const std::string& one : info.left_out) std::cout << one << ' ';
  std::cout << '\n'
            << info.strip_weights << info.version_compatible
            << static_cast<int>(info.hardware_compatibility) << '\n';
  for (const EngineProfile& profile : info.profiles)
    for (const auto& range : profile.ranges)
      std::cout << range.input << ' ' << text_of(range.least) << ' ' << text_of(range.most) << '\n';
}

NamedShapes shapes_of(char** words, int count) {
  NamedShapes out;
  for (int i = 0; i < count; ++i) {
    std::istringstream word(words[i]);
    std::string name, size;
    std::getline(word, name, '=');
    Sizes shape;
    while (std::getline(word, size, ',')) shape.push_back(std::stoll(size));
    out.emplace_back(name, shape);
  }
  return out;
}

void round_input(const std::string& type) {
  const std::string bytes((std::istreambuf_iterator<char>(std::cin)), {});
  std::vector<float> values(bytes.size() / sizeof(float));
  bytes.copy(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float));
  const std::vector<char> out = rounded(values, *element_type(type));
  std::cout.write(out.data(), static_cast<std::streamsize>(out.size()));
}

int run(int count, char** words) {
  const std::string what = words[1], given = words[2];
  if (what == "round") return round_input(given), 0;
  if (what == "rebuild") return std::cout << how_to_rebuild(given, words[3][0] == '1'), 0;
  const EngineInfo info = read_engine_info(given);
  if (what == "info") print(info);
  if (what == "profile")
    std::cout << choose_profile(info.profiles, shapes_of(words + 3, count - 3));
  if (what == "fit") {
    const Flavor flavor = words[3] == std::string("rtx") ? Flavor::rtx : Flavor::tensorrt;
    const EngineHost host{flavor, words[4], words[5], words[6][0] - '0', words[7][0] - '0'};
    const std::string wrong = why_not_here(info, host);
    if (!wrong.empty()) std::cout << wrong << '\n' << how_to_fit(info, host, "/any", false);
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  try {
    return run(count, words);
  } catch (const ptdeploy::Error& error) {
    std::cout << error.problem() << '\n' << error.fix();
    return 2;
  }
}
