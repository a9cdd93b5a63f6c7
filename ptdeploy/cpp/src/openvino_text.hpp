#pragma once

#include "text_program.hpp"

namespace ptdeploy::detail {

// Of a bundle that has both files.
std::unique_ptr<TextProgram> open_openvino_text(const Bundle& bundle);

}  // namespace ptdeploy::detail
