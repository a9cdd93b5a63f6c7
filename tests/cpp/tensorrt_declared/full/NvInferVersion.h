// See README.md in the folder above: full TensorRT, for a compile-only check.
#pragma once
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 15
