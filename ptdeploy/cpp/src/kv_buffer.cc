#include "kv_buffer.hpp"

#include "dense_kv.hpp"
#include "paged_kv.hpp"

namespace ptdeploy::detail {

std::unique_ptr<KVBuffer> make_kv_buffer(Backend& backend, const KVLayout& layout,
                                         std::vector<RowPrompt> prompts, SharedStack stack,
                                         std::size_t slots) {
  if (backend.cache())
    return std::make_unique<PagedKV>(backend, layout, std::move(prompts), std::move(stack), slots);
  return std::make_unique<DenseKV>(backend, layout, std::move(prompts), std::move(stack), slots);
}

}  // namespace ptdeploy::detail
