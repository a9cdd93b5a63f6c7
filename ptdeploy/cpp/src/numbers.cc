#include "numbers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <locale>
#include <sstream>

namespace ptdeploy::detail {
namespace {

// NaN of what is past the largest double.
double read_back(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double number = 0;
  stream >> number;
  return stream.fail() ? std::numeric_limits<double>::quiet_NaN() : number;
}

}  // namespace

std::string formatted(double number, int digits, char format) {
  if (std::isnan(number)) return "nan";  // whatever its sign
  std::ostringstream text;
  text.imbue(std::locale::classic());
  if (format == 'f') text << std::fixed;
  if (format == 'e') text << std::scientific;
  text.precision(format == 'e' ? digits - 1 : digits);
  text << number;
  return text.str();
}

std::string shortest(double number) {
  if (!std::isfinite(number)) return formatted(number, 1, 'g');
  constexpr int kEnough = 17;
  int digits = 1;
  while (digits < kEnough && read_back(formatted(number, digits, 'e')) != number) ++digits;
  const std::string text = formatted(number, digits, 'e');
  const std::size_t end = text.find('e');
  const int exponent = std::stoi(text.substr(end + 1));
  if (exponent < -4 || exponent >= 16) return text;
  // At least one digit behind the point.
  return formatted(number, std::max(digits - 1 - exponent, 1), 'f');
}

}  // namespace ptdeploy::detail
