// Numbers in words, the same whatever locale the program has set.
#pragma once

#include <string>

namespace ptdeploy::detail {

// As printf's %.*f, or %.*g or %.*e with so many digits in all, writes it; NaN without a sign.
std::string formatted(double number, int digits, char format);

// In the fewest digits that read back as the same number, as Python's repr writes it.
std::string shortest(double number);

}  // namespace ptdeploy::detail
