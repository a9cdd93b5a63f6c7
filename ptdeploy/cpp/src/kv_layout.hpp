// A causal bundle's KV buffer: what its manifest must say of it, and what it then is. The same
// rules, in the same order and the same words, as ptdeploy/runtime/kv_layout.py.
#pragma once

#include "kv_buffer.hpp"

namespace ptdeploy::detail {

// Throws Problem naming what in a manifest describes no KV buffer, nor how it writes.
void require_decoder(const Manifest& manifest);

// The KV buffer of a manifest that passed, without the prefix.
KVLayout layout_of(const Manifest& manifest);

}  // namespace ptdeploy::detail
