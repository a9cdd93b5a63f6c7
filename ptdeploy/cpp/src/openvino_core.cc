#include "openvino_core.hpp"

#include <pthread.h>

namespace ptdeploy::detail {
namespace {

// Lets no forked process find the threads of an engine that is gone, and wait for them. OpenVINO
// keeps them for the next engine while there is a Core; a plugin that ends drops them.
void forget_idle_threads() noexcept {
  try {
    ov::Core().get_property("CPU", ov::device::full_name);
  } catch (const std::exception&) {  // where there is no plugin, there are no threads
  }
}

ov::Core* core_that_forks() {
  auto made = std::make_unique<ov::Core>();
  pthread_atfork(forget_idle_threads, nullptr, nullptr);
  return made.release();
}

}  // namespace

ov::Core& openvino_core() {
  static ov::Core& core = *core_that_forks();
  return core;
}

}  // namespace ptdeploy::detail
