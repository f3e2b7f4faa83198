// A whole decoded token of one sequence in one launch: INT8 or 16-bit weights, parallel residual.
//
// One block per SM stays for the token. Weights stream through a ring in its shared memory without
// ever waiting for the layer before, because which tiles a block multiplies is fixed; what waits is
// only the arithmetic. Blocks pass vectors to each other as words that carry their own epoch
// (device/flagged.cuh), so a dependency costs one trip through L2 and there is no barrier across
// the grid. In a block, warps have different jobs:
//
//   producers  start the copies of weights, a tile each in turn
//   multiply   a few rows of weights times the staged vector, and what belongs behind it
//   stage      wait for a vector, normalise it, make planes of it (device/fixed_point.cuh) if
//              weights are INT8
//   attention  splits of heads, scores, eviction
//
// and the order of a layer's products hides latency: QKV, up, down, attention output. Attention
// happens while up and down stream. Two steps are not hidden by anything, from up to down and from
// the attention output to the next layer; there the ring goes on filling.
#pragma once

#include <waterweight/detail/arch/register_limit.cuh>
#include <waterweight/device/reduce.cuh>

#include "examples/pythia/model/cuda_token_attention.cuh"
#include "examples/pythia/model/cuda_token_multiply.cuh"
#include "examples/pythia/model/cuda_token_stage.cuh"
#include "examples/pythia/model/cuda_token_types.cuh"

namespace pythia {

/// The last block to get here picks the token from the best of each block.
template <class T>
__device__ void end_token(const TokenParameters<T>& p, Candidate best) {
  __shared__ bool last;
  best = block_best(best);  // also: every warp of this block is done
  const TokenEnding& ending = p.ending;
  if (threadIdx.x == 0) {
    ending.best[blockIdx.x] = best;
    __threadfence();
    last = atomicAdd(ending.arrived, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  Candidate chosen{-INFINITY, INT32_MAX};
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kTokenThreads) {
    chosen = better(chosen, ending.best[i]);
  }
  chosen = block_best(chosen);
  if (threadIdx.x != 0) return;
  *ending.arrived = 0;
  *p.exchange.tokens += 1;
  if (!ending.choose) return;
  const int token = chosen.index == INT32_MAX ? 0 : chosen.index;  // every logit was NaN
  ending.target.put(0, 1, ending.step[0] + 1, token, isfinite(chosen.value));
  const int live = min(ending.length[0] + 1, p.capacity);
  ending.step[0] += 1;
  ending.length[0] = live < p.capacity ? live : live - p.policy.evict_every;
}

/// A role's limit of registers instead of From. By all of its warpgroups.
template <int From, int To>
__device__ __forceinline__ void change_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  waterweight::detail::set_register_limit<To, (To > From)>();
#endif
}

/// One block per SM, all of them resident at once (a cooperative launch). HeadDim: of the model.
/// E: hidden / kTokenStagingThreads; intermediate is 4 * hidden. Element: of the weights, INT8 or
/// T. Clock: TokenClock in the form that leaves p.times.
template <class T, int HeadDim, int E, class Element, class Clock = NoTokenClock>
__global__ void __launch_bounds__(kTokenThreads, 1)
    token_kernel(const __grid_constant__ TokenParameters<T> p) {
#if __CUDA_ARCH__ >= 900
  using Attention = TokenAttention<T, HeadDim, Clock>;
  using Stager = TokenStager<T, E, Element>;
  using Tile = TokenTile<Element>;
  extern __shared__ __align__(128) std::byte memory[];
  __shared__ __align__(8) std::uint64_t ring_barriers[2 * kMaxRingSlots];
  __shared__ StagedPlanes staged;
  __shared__ TokenGroup<Element> groups[kMaxTokenGroups];
  __shared__ TokenShares shares;
  __shared__ typename Attention::Scratch attention_scratch;
  __shared__ typename Stager::Scratch stager_scratch;

  constexpr int kHidden = E * kTokenStagingThreads;
  constexpr int kSlotBytes = Tile::bytes(kHidden);
  const waterweight::weight_ring ring{memory, ring_barriers, ring_barriers + kMaxRingSlots,
                                      p.ring_slots, kSlotBytes};
  // Each role computes its places anew: kept for all of them they would cost registers.
  const auto places = [&] {
    int slots = p.ring_slots;
    asm volatile("" : "+r"(slots));
    return TokenShared(static_cast<std::size_t>(slots * kSlotBytes), Tile::kStagedBytes, kHidden,
                       kTokenParts * kHidden,
                       sizeof(TokenLayer<T>) * static_cast<std::size_t>(p.layer_count + 1),
                       Attention::attend::shape::shared_bytes(p.most_slots), 0);
  };
  const auto layers_in = [&](const TokenShared& layout) {
    return reinterpret_cast<TokenLayer<T>*>(memory + layout.layers);
  };
  const auto planes_at = [&](std::size_t offset) {
    return reinterpret_cast<std::int8_t*>(memory + offset);
  };
  constexpr int kRowGroups = kHidden / Tile::kRows;

  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (std::uint64_t& ready : staged.ready) {
      waterweight::detail::mbarrier_init(&ready, Stager::kWarps);
    }
    for (std::uint64_t& done : staged.done) {
      waterweight::detail::mbarrier_init(&done, kTokenMultiplyWarps);
    }
    staged.mlp_layers = 0;
    ring.init();
    shares =
        TokenShares(3 * kRowGroups, kTokenParts * kRowGroups, kRowGroups, p.vocab / Tile::kRows,
                    static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
  }
  constexpr int kLayerWords = sizeof(TokenLayer<T>) / sizeof(std::uint64_t);
  for (int i = thread; i < kLayerWords * (p.layer_count + 1); i += kTokenThreads) {
    reinterpret_cast<std::uint64_t*>(layers_in(places()))[i] =
        reinterpret_cast<const std::uint64_t*>(p.layers)[i];
  }
  const TokenShare owned =
      token_share(kRowGroups, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
  if (thread < Tile::kRows * owned.count) {
    const int index = thread / Tile::kRows, r = thread % Tile::kRows;
    const int row = Tile::kRows * (owned.first + index * static_cast<int>(gridDim.x)) + r;
    TokenGroup<Element>& group = groups[index];
    group.x[r] = waterweight::detail::to_float(
        p.embedding[static_cast<std::int64_t>(*p.token) * p.hidden + row]);
    for (auto& sums : group.sums) sums[r] = 0;
    group.arrived = 0;
  }
  Clock::start_token();
  const std::uint32_t epoch =
      *p.exchange.tokens * static_cast<std::uint32_t>(p.layer_count + 1) + 1;
  __syncthreads();

  Candidate best{-INFINITY, INT32_MAX};
  if (thread < kTokenFirstStager) {
    change_registers<kTokenLaunchRegisters, kTokenAttentionRegisters>();
    const TokenShared layout = places();
    Attention(p, layers_in(layout), &staged, &attention_scratch, memory + layout.attention,
              memory + layout.merge)
        .run(epoch);
    change_registers<kTokenAttentionRegisters, kTokenLaunchRegisters>();
  } else if (thread < kTokenFirstMultiplier) {
    change_registers<kTokenLaunchRegisters, kTokenStagingRegisters>();
    const TokenShared layout = places();
    Stager(p, layers_in(layout), &stager_scratch, &staged, planes_at(layout.first_planes),
           planes_at(layout.second_planes))
        .run(epoch);
    change_registers<kTokenStagingRegisters, kTokenLaunchRegisters>();
  } else {
    change_registers<kTokenLaunchRegisters, kTokenStreamRegisters>();
    if (thread < kTokenProducer) {
      const int vocab_limit = p.ending.choose ? p.ending.target.options->vocab_limit : p.vocab;
      const TokenShared layout = places();
      best = TokenMultiplier<T, Element, kHidden, Clock>(p, layers_in(layout), shares, ring,
                                                         &staged, planes_at(layout.first_planes),
                                                         planes_at(layout.second_planes), groups)
                 .run(epoch, vocab_limit);
    } else {
      if (thread % 32 == 0) {
        TokenProducer<T, Element, kHidden>(p, layers_in(places()), ring).run(shares);
      }
    }
    __syncwarp();
    change_registers<kTokenStreamRegisters, kTokenLaunchRegisters>();
  }
  __syncthreads();
  Clock::finish_token(p.times);
  end_token(p, best);
#endif
}

/// Launches the kernel: `blocks` of them must fit the device at once, one per SM.
template <class T, int HeadDim, int E, class Element, class Clock = NoTokenClock>
cudaError_t launch_token_kernel(const TokenParameters<T>& p, int blocks, std::size_t shared_bytes,
                                cudaStream_t stream) {
  const auto kernel = token_kernel<T, HeadDim, E, Element, Clock>;
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute cooperative = {};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kTokenThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, p);
}

}  // namespace pythia
