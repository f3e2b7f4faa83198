// Causal attention of a whole prompt on the host, blocked and threaded.
#pragma once

#include <waterweight/types.hpp>

#include "examples/pythia/model/thread_pool.hpp"

namespace pythia {

/// waterweight::reference::causal_attention for one sequence (batch 1, as many KV heads as heads)
/// in fp32, fast. q and k are rotated already. column_sums [heads, tokens] may be null. The result
/// does not depend on the number of threads.
void host_attention(ThreadPool& pool, const waterweight::heads_view<const float>& q,
                    const waterweight::heads_view<const float>& k,
                    const waterweight::heads_view<const float>& v,
                    const waterweight::heads_view<float>& out, float* column_sums);

}  // namespace pythia
