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

/// What H2O knows of the slots of one layer. `step` and `length` belong to the sequence and are
/// shared by all its layers. All pointers are device memory.
struct h2o_state_view {
  /// [batch, kv_heads, capacity] accumulated attention mass. Null: plain attention over the cache,
  /// nothing is scored and nothing is ever evicted.
  float* score = nullptr;
  std::int32_t* position = nullptr;   ///< [batch, kv_heads, capacity] absolute position, -1 = empty
  std::int32_t* free_slot = nullptr;  ///< [batch, kv_heads] where the next token goes
  std::int32_t* step = nullptr;       ///< [batch] absolute position of the next token
  std::int32_t* length = nullptr;     ///< [batch] live slots before the next token, < capacity
};

/// How many keys H2O keeps per KV head, apart from the token being decoded.
struct h2o_budget {
  int sinks = 0;   ///< the first tokens of the sequence, never evicted
  int heavy = 0;   ///< heavy hitters: the rest, by accumulated attention mass
  int recent = 0;  ///< the last tokens, never evicted

  /// Slots per head: the budget and one for the incoming token.
  WATERWEIGHT_HOST_DEVICE constexpr int capacity() const { return sinks + heavy + recent + 1; }
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
};

WATERWEIGHT_NAMESPACE_END
