// SHA-256 of a file three ways: with the processor's instructions, without, and byte by byte.
#include <fstream>
#include <iostream>
#include <iterator>

#include "sha256.hpp"

int main(int, char** argv) {
  std::ifstream stream(argv[1], std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(stream)), {});
  ptdeploy::detail::Sha256 whole, portable, single;
  whole.update(bytes.data(), bytes.size());
  portable.portable = true;
  portable.update(bytes.data(), bytes.size());
  for (const char& byte : bytes) single.update(&byte, 1);
  std::cout << whole.hex() << "\n" << portable.hex() << "\n" << single.hex() << "\n";
}
