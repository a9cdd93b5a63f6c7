# TensorRT or TensorRT-RTX, whichever is in TENSORRT_ROOT, as the target ptdeploy::tensorrt, and the
# CUDA runtime as ptdeploy::cudart. Both roots are CMake variables or ones of the environment.
if(TARGET ptdeploy::tensorrt)
  return()
endif()
set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}" CACHE PATH "Folder of TensorRT: include/, lib/")
set(CUDA_ROOT "$ENV{CUDA_ROOT}" CACHE PATH "Folder of CUDA, if find_package(CUDAToolkit) has none")

find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
          HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES include)
set(ptdeploy_nvinfer nvinfer libnvinfer.so.11 libnvinfer.so.10)
if(TENSORRT_INCLUDE_DIR)
  file(STRINGS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h" ptdeploy_rtx REGEX "TRT_MAJOR_RTX")
  if(ptdeploy_rtx)
    set(ptdeploy_nvinfer tensorrt_rtx libtensorrt_rtx.so.1)
  endif()
endif()
# Of any of these names the one in TENSORRT_ROOT, not another version's in the system.
find_library(TENSORRT_LIBRARY NAMES ${ptdeploy_nvinfer} NAMES_PER_DIR
             HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES lib lib64)
if(NOT TENSORRT_INCLUDE_DIR OR NOT TENSORRT_LIBRARY)
  message(FATAL_ERROR
    "ptdeploy: TensorRT's headers or library were not found in TENSORRT_ROOT "
    "(\"${TENSORRT_ROOT}\"). Unpack an official TensorRT or TensorRT-RTX archive and pass its "
    "folder: cmake -DPTDEPLOY_TENSORRT=ON -DTENSORRT_ROOT=/path/to/TensorRT ...")
endif()

function(ptdeploy_import name library include)
  add_library(${name} UNKNOWN IMPORTED GLOBAL)
  set_target_properties(${name} PROPERTIES
    IMPORTED_LOCATION "${library}"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${include}"
    INTERFACE_INCLUDE_DIRECTORIES "${include}")
endfunction()
ptdeploy_import(ptdeploy::tensorrt "${TENSORRT_LIBRARY}" "${TENSORRT_INCLUDE_DIR}")

if(NOT CUDA_ROOT)
  find_package(CUDAToolkit QUIET)
endif()
if(TARGET CUDA::cudart)
  add_library(ptdeploy::cudart INTERFACE IMPORTED GLOBAL)
  target_link_libraries(ptdeploy::cudart INTERFACE CUDA::cudart)
else()
  find_path(CUDART_INCLUDE_DIR cuda_runtime_api.h HINTS "${CUDA_ROOT}" PATH_SUFFIXES include)
  find_library(CUDART_LIBRARY NAMES cudart HINTS "${CUDA_ROOT}" PATH_SUFFIXES lib lib64)
  if(NOT CUDART_INCLUDE_DIR OR NOT CUDART_LIBRARY)
    message(FATAL_ERROR
      "ptdeploy: CUDA's headers or its runtime library were not found. Install the CUDA Toolkit, or "
      "pass its folder: cmake -DCUDA_ROOT=/path/to/cuda ...")
  endif()
  ptdeploy_import(ptdeploy::cudart "${CUDART_LIBRARY}" "${CUDART_INCLUDE_DIR}")
endif()
