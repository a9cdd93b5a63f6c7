# ONNX Runtime as the target ptdeploy::onnxruntime. ONNXRUNTIME_ROOT, a CMake variable or one of
# the environment, is the folder of an official archive: include/ and lib/ are in it.
if(TARGET ptdeploy::onnxruntime)
  return()
endif()
set(ONNXRUNTIME_ROOT "$ENV{ONNXRUNTIME_ROOT}" CACHE PATH "Folder of ONNX Runtime: include/, lib/")

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h
          HINTS "${ONNXRUNTIME_ROOT}"
          PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
find_library(ONNXRUNTIME_LIBRARY NAMES onnxruntime
             HINTS "${ONNXRUNTIME_ROOT}" PATH_SUFFIXES lib lib64)
if(NOT ONNXRUNTIME_INCLUDE_DIR OR NOT ONNXRUNTIME_LIBRARY)
  message(FATAL_ERROR
    "ptdeploy: ONNX Runtime's headers or library were not found in ONNXRUNTIME_ROOT "
    "(\"${ONNXRUNTIME_ROOT}\"). Unpack an official ONNX Runtime archive and pass its folder: "
    "cmake -DONNXRUNTIME_ROOT=/path/to/onnxruntime-linux-x64-1.xx.y ...")
endif()

add_library(ptdeploy::onnxruntime UNKNOWN IMPORTED GLOBAL)
set_target_properties(ptdeploy::onnxruntime PROPERTIES
  IMPORTED_LOCATION "${ONNXRUNTIME_LIBRARY}"
  INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}"
  INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}")
