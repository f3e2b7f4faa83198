// Block-level H2O decode attention, first half: one block attends over one split of one KV head's
// slots. h2o_account.cuh merges the splits and keeps the scores.
//
// At batch 1 a model has fewer heads than the card has SMs, so the slots of a head are divided
// among blocks. A split is as much as a block can hold in registers at once (all its keys and
// values are requested together, before q exists), so its time is one memory latency, not a loop of
// them.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/reduce.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// The slots of one KV head of one sequence. Pointers are to global memory.
template <class T>
struct h2o_head {
  T* k;                    ///< [capacity, head_dim], keys rotated
  T* v;                    ///< [capacity, head_dim]
  std::int32_t* position;  ///< [capacity]
  int fresh;               ///< the slot this token goes to
  int step;                ///< absolute position of this token
  int live;                ///< live slots, this token's included
};

/// What a split leaves for the merge, per query head of the group: addresses of its first query
/// head; `head_stride` floats further is the next one's.
struct h2o_split_output {
  float* logit;               ///< [slots of the head]: scaled scores in units of log2
  std::int64_t logit_stride;  ///< from one query head to the next
  float2* stat;               ///< this split's (maximum logit, sum of exp2(logit - maximum))
  std::int64_t stat_stride;
  float* partial;  ///< [head_dim], normalised by this split's own sum
  std::int64_t partial_stride;
};

/// How a block of Threads threads divides rows of HeadDim elements.
template <int HeadDim, int Threads>
struct h2o_split_shape {
  static constexpr int kVectors = HeadDim / 8;  ///< 16-byte vectors of a row
  /// Lanes that share a key: few, so that its dot product needs few shuffles.
  static constexpr int kLanes = kVectors <= 4 ? 1 : kVectors <= 12 ? 2 : kVectors <= 16 ? 4 : 8;
  static constexpr int kSlots = Threads / kLanes;  ///< keys in registers at a time
  static constexpr int kKeyVectors = kVectors / kLanes;
  /// Values are held the other way round, threads along the row: sums over slots stay in a thread.
  static constexpr int kGroups = Threads / kVectors;
  static constexpr int kValueRows = (kSlots + kGroups - 1) / kGroups;

  /// Bytes of shared memory for splits of up to `slots` slots.
  WATERWEIGHT_HOST_DEVICE static constexpr std::size_t shared_bytes(int slots) {
    return sizeof(float) *
           (2 * HeadDim + 2 * (Threads / 32) + kGroups * HeadDim + static_cast<std::size_t>(slots));
  }
};

/// One split. Use: begin(), which requests keys and values, then attend() once q, k_new and v_new
/// are ready. The split is [slot_begin, slot_end) with slot_end <= head.live; it may be empty.
/// shared: h2o_split_shape::shared_bytes(slot_end - slot_begin), 16-byte aligned.
template <class T, int HeadDim, int Threads>
class block_h2o_attend {
 public:
  using shape = h2o_split_shape<HeadDim, Threads>;

  __device__ __forceinline__ block_h2o_attend(const h2o_head<T>& head, int slot_begin, int slot_end,
                                              void* shared)
      : head_(head), begin_(slot_begin), count_(max(slot_end - slot_begin, 0)) {
    query_ = static_cast<float*>(shared);
    fresh_key_ = query_ + HeadDim;
    scratch_ = fresh_key_ + HeadDim;
    partial_ = scratch_ + 2 * (Threads / 32);
    p_ = partial_ + shape::kGroups * HeadDim;
  }

  /// Reads the slots as the last token left them: this token's own is taken from k_new and v_new.
  __device__ __forceinline__ void begin() {
    load_keys(0);
    load_values(0);
  }

  /// q: head h of the group at q + h * q_stride, not yet rotated; k_new, v_new: this KV head's.
  /// The block that owns the fresh slot also writes it to the cache.
  __device__ void attend(const T* q, std::int64_t q_stride, const T* k_new, const T* v_new,
                         int group_size, const rotary_view& rotary, float scale,
                         const h2o_split_output& out) {
    const bool owner = head_.fresh >= begin_ && head_.fresh < begin_ + count_;
    if (owner) append(k_new, v_new, rotary);
    for (int h = 0; h < group_size; ++h) {
      for (int d = threadIdx.x; d < HeadDim; d += Threads) {
        query_[d] = rotated_element(q + h * q_stride, d, rotary, head_.step);
      }
      __syncthreads();  // query_ and fresh_key_ are there
      compute_logits(scale * 1.4426950408889634f, out.logit + h * out.logit_stride);
      const float2 stat = softmax();
      if (threadIdx.x == 0) out.stat[h * out.stat_stride] = stat;
      weigh_values(v_new, stat.y, out.partial + h * out.partial_stride);
      if (h + 1 < group_size) __syncthreads();  // shared memory is written again
    }
  }

 private:
  __device__ void append(const T* k_new, const T* v_new, const rotary_view& rotary) {
    const std::int64_t row = std::int64_t{head_.fresh} * HeadDim;
    for (int d = threadIdx.x; d < HeadDim; d += Threads) {
      const T key = detail::from_float<T>(rotated_element(k_new, d, rotary, head_.step));
      fresh_key_[d] = detail::to_float(key);
      head_.k[row + d] = key;
      head_.v[row + d] = v_new[d];
    }
    if (threadIdx.x == 0) head_.position[head_.fresh] = head_.step;
  }

  __device__ static __forceinline__ int key_slot() { return threadIdx.x / shape::kLanes; }
  __device__ static __forceinline__ int key_column(int vector) {
    return (vector * shape::kLanes + threadIdx.x % shape::kLanes) * 8;
  }
  __device__ static __forceinline__ int value_slot(int row) {
    return threadIdx.x / shape::kVectors + row * shape::kGroups;
  }
  __device__ static __forceinline__ int value_column() { return threadIdx.x % shape::kVectors * 8; }
  /// Slot `i` of round `round` exists; values use only whole groups of threads.
  __device__ __forceinline__ bool has_slot(int round, int i) const {
    return i < shape::kSlots && round * shape::kSlots + i < count_;
  }
  __device__ static __forceinline__ bool in_group() {
    return threadIdx.x < shape::kGroups * shape::kVectors;
  }

  __device__ __forceinline__ void load_keys(int round) {
    const int slot = begin_ + round * shape::kSlots + key_slot();
#pragma unroll
    for (int i = 0; i < shape::kKeyVectors; ++i) {
      keys_[i] = make_uint4(0, 0, 0, 0);
      if (has_slot(round, key_slot())) {
        keys_[i] = detail::load_l2(head_.k + std::int64_t{slot} * HeadDim + key_column(i));
      }
    }
    keys_round_ = round;
  }

  __device__ __forceinline__ void load_values(int round) {
#pragma unroll
    for (int i = 0; i < shape::kValueRows; ++i) {
      const int slot = begin_ + round * shape::kSlots + value_slot(i);
      values_[i] = make_uint4(0, 0, 0, 0);
      if (in_group() && has_slot(round, value_slot(i))) {
        values_[i] = detail::load_l2(head_.v + std::int64_t{slot} * HeadDim + value_column());
      }
    }
    values_round_ = round;
  }

  __device__ __forceinline__ float dot(bool fresh) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < shape::kKeyVectors; ++i) {
      const std::uint32_t words[4] = {keys_[i].x, keys_[i].y, keys_[i].z, keys_[i].w};
      const float* q = query_ + key_column(i);
      const float* k = fresh_key_ + key_column(i);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float2 pair = detail::unpack_pair<T>(words[w]);
        if (fresh) pair = make_float2(k[2 * w], k[2 * w + 1]);
        sum = fmaf(pair.x, q[2 * w], sum);
        sum = fmaf(pair.y, q[2 * w + 1], sum);
      }
    }
    return sum;
  }

  /// p_[i] and logit[slot]: the scores of this split.
  __device__ void compute_logits(float scale_log2, float* logit) {
    for (int round = 0; round * shape::kSlots < count_; ++round) {
      if (round != keys_round_) load_keys(round);
      const int i = round * shape::kSlots + key_slot();
      float sum = dot(begin_ + i == head_.fresh);
#pragma unroll
      for (int offset = shape::kLanes / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      }
      if (threadIdx.x % shape::kLanes == 0 && i < count_) {
        p_[i] = sum * scale_log2;
        logit[begin_ + i] = p_[i];
      }
    }
    __syncthreads();
  }

  /// p_[i] becomes exp2(logit - maximum). Returns (maximum, sum); an empty split (-inf, 0).
  __device__ float2 softmax() {
    float maximum = -INFINITY;
    for (int i = threadIdx.x; i < count_; i += Threads) maximum = fmaxf(maximum, p_[i]);
    maximum =
        block_reduce<Threads>(maximum, scratch_, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count_; i += Threads) {
      p_[i] = exp2f(p_[i] - maximum);
      sum += p_[i];
    }
    // The barrier inside also publishes p_.
    sum =
        block_reduce<Threads>(sum, scratch_ + Threads / 32, [](float a, float b) { return a + b; });
    return make_float2(maximum, sum);
  }

  __device__ void weigh_values(const T* v_new, float sum, float* out) {
    float acc[8] = {};
    for (int round = 0; round * shape::kSlots < count_; ++round) {
      if (round != values_round_) load_values(round);
#pragma unroll
      for (int r = 0; r < shape::kValueRows; ++r) {
        if (!in_group() || !has_slot(round, value_slot(r))) continue;
        const int i = round * shape::kSlots + value_slot(r);
        uint4 vector = values_[r];
        if (begin_ + i == head_.fresh) {
          vector = *reinterpret_cast<const uint4*>(v_new + value_column());
        }
        const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
        const float p = p_[i];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float2 pair = detail::unpack_pair<T>(words[w]);
          acc[2 * w] = fmaf(p, pair.x, acc[2 * w]);
          acc[2 * w + 1] = fmaf(p, pair.y, acc[2 * w + 1]);
        }
      }
    }
    if (in_group()) {
      float* mine = partial_ + threadIdx.x / shape::kVectors * HeadDim + value_column();
      *reinterpret_cast<float4*>(mine) = make_float4(acc[0], acc[1], acc[2], acc[3]);
      *reinterpret_cast<float4*>(mine + 4) = make_float4(acc[4], acc[5], acc[6], acc[7]);
    }
    __syncthreads();
    const float inverse = sum > 0.0f ? 1.0f / sum : sum;  // empty: 0; NaN stays NaN
    for (int d = threadIdx.x; d < HeadDim; d += Threads) {
      float total = 0.0f;
#pragma unroll
      for (int g = 0; g < shape::kGroups; ++g) total += partial_[g * HeadDim + d];
      out[d] = total * inverse;
    }
  }

  const h2o_head<T>& head_;
  int begin_, count_;
  int keys_round_, values_round_;
  float *query_, *fresh_key_, *scratch_, *partial_, *p_;
  uint4 keys_[shape::kKeyVectors];
  uint4 values_[shape::kValueRows];
};

WATERWEIGHT_ARCH_NAMESPACE_END
