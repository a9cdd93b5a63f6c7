#pragma once

#include <openvino/openvino.hpp>

namespace ptdeploy::detail {

// The process's Core, which is never destroyed. On a CPU with AMX a Core's plugin gives the thread
// that loads it a stack for signals, and takes it away when it ends: of two, the one that ends last
// puts back the other's, which is memory no more, and the next signal ends the process.
ov::Core& openvino_core();

}  // namespace ptdeploy::detail
