// What backends share that compute over this process's own memory.
#pragma once

#include "backend.hpp"

namespace ptdeploy::detail {

class HostBackend : public Backend {
 public:
  Placed place(std::size_t bytes) override;
  void copy(const std::vector<LineCopy>& copies) override;
  bool in_host_memory() const override { return true; }
  bool caches(ElementType type) const override { return type == ElementType::float32; }
};

}  // namespace ptdeploy::detail
