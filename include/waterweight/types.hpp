// The plain views every function of the library takes. A view owns nothing, copies freely, and
// compiles without CUDA. Strides and leading dimensions count elements, never bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <waterweight/config.hpp>

WATERWEIGHT_NAMESPACE_BEGIN

/// A row-major matrix [rows, cols] whose rows start `ld` >= cols elements apart.
template <class T>
struct matrix_view {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t ld = 0;

  template <class U, std::enable_if_t<std::is_same_v<U, const T> && !std::is_const_v<T>, int> = 0>
  constexpr operator matrix_view<U>() const {
    return {data, rows, cols, ld};
  }
};

/// W8A16 weights: W[n, k] = scale[n] * data[n * ld + k], symmetric, data in [-127, 127].
struct int8_weight_view {
  const std::int8_t* data = nullptr;  ///< [rows = N, cols = K], row-major
  const float* scale = nullptr;       ///< [N], fp32, one per output channel
  std::int64_t rows = 0;              ///< N, output channels
  std::int64_t cols = 0;              ///< K, input features
  std::int64_t ld = 0;                ///< elements between rows, >= cols
};

/// The writable form of int8_weight_view: what the quantizer fills.
struct mutable_int8_weight_view {
  std::int8_t* data = nullptr;
  float* scale = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t ld = 0;

  operator int8_weight_view() const { return {data, scale, rows, cols, ld}; }
};

/// Vectors of `head_dim` contiguous elements, one per (sequence, token, head):
/// element (b, t, h, d) is data[b * batch_stride + t * token_stride + h * head_stride + d].
/// A fused QKV buffer [batch, tokens, heads, 3, head_dim] is three of these over one allocation.
template <class T>
struct heads_view {
  T* data = nullptr;
  int batch = 0;
  int tokens = 0;  ///< tokens per sequence: the upper bound where lengths are ragged
  int heads = 0;
  int head_dim = 0;
  std::int64_t batch_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;

  template <class U, std::enable_if_t<std::is_same_v<U, const T> && !std::is_const_v<T>, int> = 0>
  constexpr operator heads_view<U>() const {
    return {data, batch, tokens, heads, head_dim, batch_stride, token_stride, head_stride};
  }
};

/// Rotary position embedding of the first `dims` elements of each head, half-split (GPT-NeoX):
/// pair (i, i + dims / 2) turns by position * inv_freq[i]. dims = 0 turns nothing.
struct rotary_view {
  const float* inv_freq = nullptr;  ///< [dims / 2], device memory
  int dims = 0;                     ///< even, <= head_dim
};

/// The keys and values of one layer, stored in slots: [batch, kv_heads, capacity, head_dim] each,
/// contiguous. Keys are stored after rotary embedding, so slots need no order.
template <class T>
struct kv_cache_view {
  T* k = nullptr;
  T* v = nullptr;
  int batch = 0;
  int kv_heads = 0;
  int capacity = 0;  ///< slots per (sequence, KV head)
  int head_dim = 0;
};

/// Which heads share one set of kept keys. A shared set is chosen by the sum of its heads' scores:
/// in fp32, the heads of each layer in order, then the layers' sums in order.
enum class h2o_granularity {
  per_head,   ///< every KV head keeps its own (the paper)
  per_layer,  ///< one set for all KV heads of a layer
  per_model,  ///< one set for all layers: one eviction at the end of the step
};

/// What a kernel may read while the one launched just before it on the stream still runs
/// (programmatic dependent launch, compute capability 9.0 and newer; elsewhere it changes nothing).
enum class early_read {
  nothing,
  cache,   ///< keys and values: the caller promises that the kernel before does not write them
  weights  ///< the same of weights and their scales
};

/// Which keys H2O keeps, apart from the tokens decoded since the last eviction. All counts >= 0,
/// evict_every >= 1.
///
/// A cache is full when `capacity()` slots are live; then evict_every of them leave at once, lowest
/// score first among those that are neither sinks nor among the last `recent` tokens, and budget()
/// remain. heavy = 0 chooses by position alone: then scores are kept but never decide.
struct h2o_policy {
  int sinks = 0;        ///< the first tokens of the sequence, never evicted
  int heavy = 0;        ///< heavy hitters: the rest, by accumulated attention mass
  int recent = 0;       ///< the last tokens, never evicted
  int evict_every = 1;  ///< tokens from one eviction to the next, and how many then leave
  h2o_granularity granularity = h2o_granularity::per_head;

  /// StreamingLLM (Xiao 2023): the first and the last tokens.
  static constexpr h2o_policy streaming(int sinks, int recent, int evict_every = 1) {
    return {sinks, 0, recent, evict_every, h2o_granularity::per_head};
  }
  /// The last tokens alone.
  static constexpr h2o_policy sliding_window(int recent, int evict_every = 1) {
    return {0, 0, recent, evict_every, h2o_granularity::per_head};
  }

  /// Keys left by an eviction.
  WATERWEIGHT_HOST_DEVICE constexpr int budget() const { return sinks + heavy + recent; }
  /// Slots per head: the budget and the tokens until the next eviction.
  WATERWEIGHT_HOST_DEVICE constexpr int capacity() const { return budget() + evict_every; }

  /// The same policy for a sequence that may use only `bound` of the slots: heavy becomes bound -
  /// sinks - recent - evict_every, at least 0 and at most what it was.
  WATERWEIGHT_HOST_DEVICE constexpr h2o_policy bounded(int bound) const {
    h2o_policy result = *this;
    const int least = sinks + recent + evict_every;
    if (bound < capacity()) result.heavy = bound > least ? bound - least : 0;
    return result;
  }

  friend constexpr bool operator==(const h2o_policy& a, const h2o_policy& b) {
    return a.sinks == b.sinks && a.heavy == b.heavy && a.recent == b.recent &&
           a.evict_every == b.evict_every && a.granularity == b.granularity;
  }
  friend constexpr bool operator!=(const h2o_policy& a, const h2o_policy& b) { return !(a == b); }
};

/// What H2O knows of the slots of one layer, or of several whose arrays lie `layer_stride` heads
/// apart. `step`, `length` and `capacity_of` belong to the sequence and are shared by all layers.
/// All pointers are device memory.
///
/// The next token goes to free_slot; the live slots are then [0, length + 1). With evict_every = 1
/// the slot freed by an eviction is the next free_slot and nothing moves. With evict_every > 1 the
/// survivors above the new length move into the holes below it, and free_slot = length. Heads that
/// share a set of kept keys hold the same positions in the same slots.
struct h2o_state_view {
  /// [batch, kv_heads, capacity] accumulated attention mass. Null: plain attention over the cache,
  /// nothing is scored and nothing is ever evicted.
  float* score = nullptr;
  std::int32_t* position = nullptr;   ///< [batch, kv_heads, capacity] absolute position, -1 = empty
  std::int32_t* free_slot = nullptr;  ///< [batch, kv_heads] where the next token goes
  std::int32_t* step = nullptr;       ///< [batch] absolute position of the next token
  std::int32_t* length = nullptr;     ///< [batch] live slots before the next token, < capacity
  /// [batch] slots that a sequence may use: it is full, and evicts, at this many live slots, as
  /// under policy.bounded(capacity_of[b]). Taken as at least sinks + recent + evict_every and at
  /// most capacity. Null: all may use `capacity`; must be null where score is.
  const std::int32_t* capacity_of = nullptr;
  int layers = 1;  ///< layers the view covers; 1 but for h2o_select* and h2o_evict
  /// From a layer to the next, in heads: at least batch * kv_heads; of no meaning with one layer.
  /// Scores and positions are layer_stride * capacity elements apart, free slots layer_stride.
  std::int64_t layer_stride = 0;

  /// One of the layers.
  WATERWEIGHT_HOST_DEVICE constexpr h2o_state_view layer(int index, int capacity) const {
    h2o_state_view one = *this;
    const std::int64_t heads = index * layer_stride;
    if (score != nullptr) one.score += heads * capacity;
    if (position != nullptr) one.position += heads * capacity;
    if (free_slot != nullptr) one.free_slot += heads;
    one.layers = 1;
    return one;
  }
};

/// The softmax mass that each token of a prompt received, [batch, kv_heads, tokens] contiguous for
/// each layer: what h2o_prefill_attention writes as column_sums.
struct h2o_score_view {
  const float* data = nullptr;
  int batch = 0;
  int kv_heads = 0;
  int tokens = 0;
  int layers = 1;
  std::int64_t layer_stride = 0;  ///< elements from a layer to the next; no meaning with one layer
};

/// Scratch device memory lent by the caller: zeroed before its first use, left zero by every call.
struct workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// What the library asks of a device, read once by query_device() and passed to every call that
/// chooses by it. Filled by hand it serves tests and offline sizing.
struct device_info {
  int compute_capability = 0;  ///< 10 * major + minor: 80, 90, ...
  int sm_count = 0;
  int max_shared_bytes = 0;  ///< per block, opt-in limit
  std::int64_t l2_bytes = 0;
  /// Other kernels run at the same time, on SMs that sm_count leaves out: a caller that divides a
  /// device sets both.
  bool beside_others = false;
};

WATERWEIGHT_NAMESPACE_END
