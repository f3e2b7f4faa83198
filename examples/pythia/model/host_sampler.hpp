// Choosing the next token from its logits on the host.
#pragma once

#include <cstdint>

#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// The lowest index of the largest value among the first `count` (NaN counts as least).
std::int32_t argmax(const float* values, int count);

/// -log softmax(logits)[target], natural log.
float negative_log_likelihood(const float* logits, int vocab_size, std::int32_t target);

/// Throws Error unless temperature >= 0 and finite, top_k >= 0, 0 < top_p <= 1, vocab_limit >= 0.
void check_sampling(const SamplingOptions& sampling);

/// The token that follows. Ids at or above sampling.vocab_limit are never chosen.
/// - temperature 0: the largest logit, the lowest id on a tie.
/// - otherwise candidates are ranked by logit (on a tie the lower id first); the first top_k stay;
/// of
///   these the shortest prefix whose softmax(logit / temperature) sums to top_p stays (never
///   empty); and the one with the largest logit / temperature - log(-log(u)) is chosen, which draws
///   from that distribution (Gumbel's maximum). u is sampling_uniform() of (seed, sequence,
///   position, id), so the choice needs no common order of summation and a GPU can repeat it.
/// Throws Error when no logit is a number.
std::int32_t sample_token(const float* logits, int vocab_size, const SamplingOptions& sampling,
                          int sequence, int position);

}  // namespace pythia
