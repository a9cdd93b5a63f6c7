# OpenVINO as find_package(OpenVINO) has it: of an official archive, or of the Python package, whose
# folder `cmake` is OpenVINO_DIR.
if(TARGET openvino::runtime)
  return()
endif()
set(PTDEPLOY_OPENVINO_TESTED 2026.4.1)
find_package(OpenVINO QUIET COMPONENTS Runtime ONNX)
if(NOT OpenVINO_FOUND)
  message(FATAL_ERROR
    "ptdeploy: OpenVINO was not found. Pass the folder of its OpenVINOConfig.cmake, which is "
    "openvino/cmake in the Python package: "
    "cmake -DPTDEPLOY_OPENVINO=ON -DOpenVINO_DIR=/path/to/openvino/cmake ...")
endif()
if(NOT OpenVINO_VERSION VERSION_EQUAL PTDEPLOY_OPENVINO_TESTED)
  message(WARNING "ptdeploy is tested with OpenVINO ${PTDEPLOY_OPENVINO_TESTED} alone; this is "
                  "${OpenVINO_VERSION}.")
endif()
