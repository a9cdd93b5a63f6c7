// Infer requests that no run has: each run has one to itself, so that threads may run at once.
#pragma once

#include <openvino/openvino.hpp>

#include <mutex>
#include <utility>
#include <vector>

namespace ptdeploy::detail {

class Requests {
 public:
  explicit Requests(ov::CompiledModel compiled) : compiled_(std::move(compiled)) {}

  ov::InferRequest take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return compiled_.create_infer_request();
    ov::InferRequest request = std::move(free_.back());
    free_.pop_back();
    return request;
  }

  void give_back(ov::InferRequest request) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(request));
  }

 private:
  ov::CompiledModel compiled_;
  std::mutex mutex_;
  std::vector<ov::InferRequest> free_;
};

}  // namespace ptdeploy::detail
