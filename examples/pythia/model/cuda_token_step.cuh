// Host side of the token kernel: whether a session can use it, its buffers and its launch.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>
#include <waterweight/device/ring_order.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/cuda_check.hpp"
#include "examples/pythia/model/cuda_decode_step.cuh"
#include "examples/pythia/model/cuda_sampling.cuh"
#include "examples/pythia/model/cuda_state.hpp"
#include "examples/pythia/model/cuda_token_dispatch.cuh"
#include "examples/pythia/model/cuda_token_kernel.cuh"
#include "examples/pythia/model/cuda_token_timed.hpp"

namespace pythia {

/// The token kernel of one engine. Use: plan() before the arena is allocated, bind() after, then
/// enqueue() if active().
template <class T>
class TokenStep {
 public:
  /// Bytes an SM has on their way from memory at a time: enough for its bandwidth, and no more,
  /// because what the blocks tell each other queues behind them. Pythia-2.8B on H200, the kernel
  /// alone with tiles of 10 KiB: 731 us a token with 4 of them, 722 with 5, 724 with 6.
  static constexpr int kBytesInFlight = 56 << 10;

  /// Of weights, once a layer has to read keys and values of an eighth of their bytes or more
  /// beside them.
  static constexpr int kBytesInFlightBesideMany = 40 << 10;

  /// What a producer that finds the ring full asks L2 for, in tiles of its own. Not for full
  /// attention: its keys and values, of which there are many, would come later.
  static constexpr int kTilesAhead = 8;

  /// Decides whether the kernel serves these options, and registers its buffers if so.
  void plan(const Config& config, const EngineOptions& options, const KvState<T>& kv,
            const waterweight::device_info& device, DeviceArena* arena) {
    weights_ = options.weights;
    active_ = options.one_launch_decode && options.batch_size == 1 && config.parallel_residual &&
              shape(config, kv, device);
    if (!active_) return;
    const auto hidden = static_cast<std::size_t>(config.hidden_size);
    const auto heads = static_cast<std::size_t>(config.num_heads);
    const auto layers = static_cast<std::size_t>(config.num_layers);
    const auto splits = static_cast<std::size_t>(p_.splits);
    TokenExchange& exchange = p_.exchange;
    arena->add(&exchange.x, 2 * hidden);
    arena->add(&exchange.qkv, 3 * hidden);
    arena->add(&exchange.attention, hidden);
    arena->add(&exchange.mlp, static_cast<std::size_t>(config.intermediate_size));
    arena->add(&exchange.stat, 4 * heads * splits);
    arena->add(&exchange.partial, 2 * hidden * splits);
    arena->add(&exchange.logit, 2 * heads * static_cast<std::size_t>(kv.capacity));
    arena->add(&exchange.arrived, layers * heads);
    arena->add(&exchange.tokens, 1);
    arena->add(&p_.ending.best, static_cast<std::size_t>(blocks_));
    arena->add(&p_.ending.arrived, 1);
    arena->add(&layers_, layers + 1);
  }

  bool active() const { return active_; }

  /// Of the form of the kernel that times itself; 0 where there is none.
  int timed_blocks() const {
    return active_ && has_timed_token_kernel(head_dim_, p_.hidden) ? blocks_ : 0;
  }

  /// After the arena's allocation and kv.bind(). `step` as enqueue_decode_step takes it, `target`
  /// as sample() does.
  void bind(const DecodeStep<T>& step, const SamplingTarget& target, cudaStream_t stream) {
    if (!active_) return;
    const CudaWeights<T>& weights = *step.weights;
    const auto linear = [](const CudaLinear<T>& from) {
      const void* const weight =
          from.quantized != nullptr ? static_cast<const void*>(from.quantized) : from.weight;
      return TokenLinear<T>{static_cast<const std::byte*>(weight), from.scale, from.bias};
    };
    std::vector<TokenLayer<T>> layers;
    for (std::size_t i = 0; i < weights.layers.size(); ++i) {
      const CudaLayer<T>& layer = weights.layers[i];
      const waterweight::h2o_state_view& state = step.kv->states[i];
      layers.push_back(
          {{linear(layer.qkv), linear(layer.up), linear(layer.down), linear(layer.dense)},
           layer.attention_norm,
           layer.mlp_norm,
           step.kv->caches[i].k,
           step.kv->caches[i].v,
           state.score,
           state.position,
           state.free_slot});
    }
    TokenLayer<T> last;
    last.linear[kQkvTile] = linear(weights.embed_out);
    last.attention_norm = weights.final_norm;
    layers.push_back(last);
    check_cuda(cudaMemcpyAsync(layers_, layers.data(), layers.size() * sizeof(layers[0]),
                               cudaMemcpyHostToDevice, stream),
               "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    p_.layers = layers_;
    p_.embedding = weights.embedding;
    p_.token = step.tokens;
    p_.logits = step.logits;
    p_.rotary = step.rotary;
    p_.policy = step.kv->policy;
    p_.step = p_.ending.step = step.kv->all_layers.step;
    p_.length = p_.ending.length = step.kv->all_layers.length;
    p_.ending.target = target;
  }

  /// Feeds the token and leaves the logits. choose: also takes the best token, as sample() does for
  /// temperature 0, and advances the sequence, as h2o_advance does. times: where not null, what
  /// timed_blocks() blocks add their times to.
  void enqueue(bool choose, TokenTimes* times, cudaStream_t stream) const {
    TokenParameters<T> p = p_;
    p.ending.choose = choose;
    p.times = times;
    if (times != nullptr) {
      check_cuda(launch_timed_token_kernel(p, head_dim_, weights_, blocks_, shared_bytes_, stream),
                 "token_kernel");
      return;
    }
    dispatch_token_kernel<T>(head_dim_, p.hidden, weights_, [&](auto dim, auto e, auto element) {
      using Element = decltype(element);
      check_cuda(launch_token_kernel<T, decltype(dim)::value, decltype(e)::value, Element>(
                     p, blocks_, shared_bytes_, stream),
                 "token_kernel");
    });
  }

 private:
  /// Fills what follows from the sizes; returns whether they fit.
  bool shape(const Config& config, const KvState<T>& kv, const waterweight::device_info& device) {
    const int rows =
        weights_ == WeightType::int8 ? TokenTile<std::int8_t>::kRows : TokenTile<T>::kRows;
    const int hidden = config.hidden_size, groups = hidden / rows;
    if (device.compute_capability < 90 || hidden % kTokenStagingThreads != 0 ||
        config.intermediate_size != 4 * hidden || config.vocab_size % rows != 0 ||
        config.num_layers > kMaxTokenLayers) {
      return false;
    }
    head_dim_ = config.head_dim();
    blocks_ = token_blocks(groups, device.sm_count);
    if ((groups + blocks_ - 1) / blocks_ > kMaxTokenGroups) return false;
    p_.layer_count = config.num_layers;
    p_.hidden = hidden;
    p_.inner = config.intermediate_size;
    p_.heads = config.num_heads;
    p_.vocab = config.vocab_size;
    p_.capacity = kv.capacity;
    p_.splits = waterweight::detail::decode_splits(kv.capacity, kTokenAttentionThreads);
    if (p_.heads * p_.splits > kMaxTokenUnits * blocks_) return false;
    p_.tiles_ahead = kv.evicts ? kTilesAhead : 0;
    const int weight_bytes = weights_ == WeightType::int8 ? 1 : static_cast<int>(sizeof(T));
    p_.in_flight.many = kv.evicts ? INT_MAX : many_live(hidden, weight_bytes, sizeof(T));
    p_.most_slots = (kv.capacity + p_.splits - 1) / p_.splits;
    p_.eps = static_cast<float>(config.layer_norm_eps);
    p_.gelu_tanh = config.activation == Activation::gelu_tanh;
    bool fits = false;
    dispatch_token_kernel<T>(head_dim_, hidden, weights_, [&](auto dim, auto e, auto element) {
      fits = choose_ring<decltype(dim)::value, decltype(e)::value, decltype(element)>(
          kv.policy.evict_every, device);
    });
    return fits;
  }

  /// As many tiles as fit beside the rest; false if the kernel cannot run with them.
  template <int HeadDim, int E, class Element>
  bool choose_ring(int evict_every, const waterweight::device_info& device) {
    const auto kernel = token_kernel<T, HeadDim, E, Element>;
    // Built for an older architecture, and translated for this one, the kernel is empty.
    if (!waterweight::detail::compiled_for(90, kernel)) return false;
    cudaFuncAttributes attributes;
    check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    const std::size_t tile = static_cast<std::size_t>(TokenTile<Element>::bytes(p_.hidden));
    const auto layout = [&](std::size_t slots) {
      return TokenShared(slots * tile, TokenTile<Element>::kStagedBytes, p_.hidden, p_.inner,
                         sizeof(TokenLayer<T>) * static_cast<std::size_t>(p_.layer_count + 1),
                         TokenAttention<T, HeadDim>::attend::shape::shared_bytes(p_.most_slots),
                         token_merge_bytes(evict_every))
          .total;
    };
    const std::size_t room = static_cast<std::size_t>(device.max_shared_bytes) -
                             attributes.sharedSizeBytes - kTimedSharedBytes;
    std::size_t slots = kMaxRingSlots;
    while (slots >= kLeastRingSlots && layout(slots) > room) --slots;
    if (slots < kLeastRingSlots) return false;
    p_.ring_slots = static_cast<int>(slots);
    const auto in_flight = [&](int bytes) {
      return std::clamp(
          bytes / static_cast<int>(tile), kLeastInFlight,
          waterweight::ring_most_in_flight(p_.ring_slots, kTokenProducers, kTokenMultiplyWarps));
    };
    p_.in_flight.most = in_flight(kBytesInFlight);
    p_.in_flight.beside_many = in_flight(kBytesInFlightBesideMany);
    shared_bytes_ = layout(slots);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes_)),
               "cudaFuncSetAttribute");
    int resident = 0;
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kTokenThreads,
                                                             shared_bytes_),
               "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return resident >= 1;
  }

  bool active_ = false;
  WeightType weights_ = WeightType::int8;
  int blocks_ = 0, head_dim_ = 0;
  std::size_t shared_bytes_ = 0;
  TokenLayer<T>* layers_ = nullptr;
  TokenParameters<T> p_ = {};
};

}  // namespace pythia
