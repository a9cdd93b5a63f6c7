#include "numbers.hpp"

#include <cmath>
#include <locale>
#include <sstream>

namespace ptdeploy::detail {
namespace {

double read_back(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double number = 0;
  stream >> number;
  return number;
}

}  // namespace

std::string formatted(double number, int digits, char format) {
  if (std::isnan(number)) return "nan";  // whatever its sign
  std::ostringstream text;
  text.imbue(std::locale::classic());
  if (format == 'f') text << std::fixed;
  text.precision(digits);
  text << number;
  return text.str();
}

std::string shortest(double number) {
  constexpr int kEnough = 17;
  int digits = 1;
  while (digits < kEnough && read_back(formatted(number, digits, 'g')) != number) ++digits;
  return formatted(number, digits, 'g');
}

}  // namespace ptdeploy::detail
