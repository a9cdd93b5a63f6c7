# find_package(ptdeploy CONFIG) with -Dptdeploy_DIR="$(ptdeploy --cmake-dir)" gives the target
# ptdeploy::ptdeploy. The wheel carries sources, so the library is compiled with your project,
# by your compiler and with your flags.
if(NOT TARGET ptdeploy::ptdeploy)
  add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/.." "${CMAKE_BINARY_DIR}/ptdeploy-library")
endif()
