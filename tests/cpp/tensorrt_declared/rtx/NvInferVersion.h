// See README.md in the folder above: TensorRT-RTX, for a compile-only check.
#pragma once
#define TRT_MAJOR_RTX 1
#define TRT_MINOR_RTX 6
