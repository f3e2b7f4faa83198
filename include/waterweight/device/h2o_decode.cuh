// Block-level H2O decode attention: one block decodes one token for one KV head of one sequence.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/reduce.cuh>
#include <waterweight/device/rotary.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// The slots of one KV head of one sequence and what the step must know. Pointers are to global
/// memory; score null: attention only.
template <class T>
struct h2o_head {
  T* k;                    ///< [capacity, head_dim]
  T* v;                    ///< [capacity, head_dim]
  float* score;            ///< [capacity] or null
  std::int32_t* position;  ///< [capacity]
  std::int32_t* free_slot;
  int capacity;
  int step;    ///< absolute position of this token
  int length;  ///< live slots before it
  int sinks;
  int recent;
};

/// `capacity` scores, then the block's own scratch.
template <int HeadDim, int Threads>
WATERWEIGHT_HOST_DEVICE constexpr std::size_t h2o_decode_shared_bytes(int capacity) {
  constexpr std::size_t kScratch = sizeof(float) * (HeadDim + Threads / 32 * HeadDim) +
                                   sizeof(unsigned long long) * (Threads / 32);
  return kScratch + sizeof(float) * static_cast<std::size_t>(capacity);
}

/// Appends the token, attends with `group_size` query heads that share this KV head, adds the
/// softmax mass to the scores and evicts when the cache is full.
///
/// q, out: head h of the group at q + h * q_stride; k_new, v_new: this KV head, unrotated.
/// shared: h2o_decode_shared_bytes<HeadDim, Threads>(capacity) bytes, 16-byte aligned.
/// All threads of the block take part. Sums run in an order fixed by the slot numbers and Threads.
template <class T, int HeadDim, int Threads>
class block_h2o_decode {
 public:
  __device__ block_h2o_decode(const h2o_head<T>& head, const rotary_view& rotary, void* shared)
      : head_(head), rotary_(rotary), live_(min(head.length + 1, head.capacity)) {
    reduce_keys_ = static_cast<unsigned long long*>(shared);
    query_ = reinterpret_cast<float*>(reduce_keys_ + kWarps);
    partial_ = query_ + HeadDim;
    p_ = partial_ + kWarps * HeadDim;
  }

  __device__ void run(const T* q, std::int64_t q_stride, const T* k_new, const T* v_new, T* out,
                      std::int64_t out_stride, int group_size, float scale) {
    const int slot = append(k_new, v_new);
    for (int h = 0; h < group_size; ++h) {
      for (int d = threadIdx.x; d < HeadDim; d += Threads) {
        query_[d] = rotated_element(q + h * q_stride, d, rotary_, head_.step);
      }
      __syncthreads();  // query_ and (first time round) the appended token are visible
      compute_scores(scale * 1.4426950408889634f);
      const float inverse_sum = softmax();
      accumulate(inverse_sum);
      attend(out + h * out_stride, inverse_sum);
      __syncthreads();  // before query_, p_ and partial_ are written again
    }
    finish(slot);
  }

 private:
  static constexpr int kWarps = Threads / 32;
  static constexpr int kVectors = HeadDim / 8;  // 16-byte vectors of a row
  /// Lanes that share one slot's row: a power of two, so that they reduce by shuffles.
  static constexpr int kLanes = kVectors <= 4 ? 4 : kVectors <= 8 ? 8 : kVectors <= 16 ? 16 : 32;
  static constexpr int kSlotsPerWarp = 32 / kLanes;
  static constexpr int kSlotsPerPass = kWarps * kSlotsPerWarp;
  static constexpr int kUnroll = 4;  // rows a lane has in flight

  __device__ int append(const T* k_new, const T* v_new) {
    const int slot = min(max(*head_.free_slot, 0), head_.capacity - 1);
    for (int d = threadIdx.x; d < HeadDim; d += Threads) {
      head_.k[slot * HeadDim + d] =
          detail::from_float<T>(rotated_element(k_new, d, rotary_, head_.step));
      head_.v[slot * HeadDim + d] = v_new[d];
    }
    if (threadIdx.x == 0) {
      head_.position[slot] = head_.step;
      if (head_.score != nullptr) head_.score[slot] = 0.0f;
    }
    return slot;
  }

  /// Calls f(slot, vector of the row at `rows`) for this lane's share, kUnroll loads at a time.
  template <class F>
  __device__ __forceinline__ void for_each_row(const T* rows, const F& f) const {
    const int lane = threadIdx.x % 32, column = lane % kLanes;
    const int first = threadIdx.x / 32 * kSlotsPerWarp + lane / kLanes;
    for (int base = 0; base < live_; base += kSlotsPerPass * kUnroll) {
      uint4 vector[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int slot = base + u * kSlotsPerPass + first;
        vector[u] = make_uint4(0, 0, 0, 0);
        if (slot < live_ && column < kVectors) {
          vector[u] = *reinterpret_cast<const uint4*>(rows + slot * HeadDim + column * 8);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) f(base + u * kSlotsPerPass + first, vector[u]);
    }
  }

  /// p_[slot] = score in units of log2, for every live slot.
  __device__ void compute_scores(float scale_log2) {
    const int column = threadIdx.x % kLanes;
    float q[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) q[e] = column < kVectors ? query_[column * 8 + e] : 0.0f;
    for_each_row(head_.k, [&](int slot, const uint4& vector) {
      const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
      float dot = 0.0f;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 pair = detail::unpack_pair<T>(words[w]);
        dot = fmaf(pair.x, q[2 * w], dot);
        dot = fmaf(pair.y, q[2 * w + 1], dot);
      }
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) {
        dot += __shfl_xor_sync(0xffffffffu, dot, offset);
      }
      if (column == 0 && slot < live_) p_[slot] = dot * scale_log2;
    });
    __syncthreads();
  }

  /// p_[slot] becomes exp(score - max); returns 1 / sum.
  __device__ float softmax() {
    float* scratch = reinterpret_cast<float*>(reduce_keys_);
    float maximum = -INFINITY;
    for (int slot = threadIdx.x; slot < live_; slot += Threads) {
      maximum = fmaxf(maximum, p_[slot]);
    }
    maximum = block_reduce<Threads>(maximum, scratch, [](float a, float b) { return fmaxf(a, b); });
    __syncthreads();
    float sum = 0.0f;
    for (int slot = threadIdx.x; slot < live_; slot += Threads) {
      const float p = exp2f(p_[slot] - maximum);
      p_[slot] = p;
      sum += p;
    }
    // The barrier inside also publishes p_ to the lanes of attend().
    sum = block_reduce<Threads>(sum, scratch, [](float a, float b) { return a + b; });
    return 1.0f / sum;
  }

  /// score[slot] += softmax mass; slot by slot the same thread for every head of the group.
  __device__ void accumulate(float inverse_sum) {
    if (head_.score == nullptr) return;
    for (int slot = threadIdx.x; slot < live_; slot += Threads) {
      head_.score[slot] += p_[slot] * inverse_sum;
    }
  }

  __device__ void attend(T* out, float inverse_sum) {
    float acc[8] = {};
    for_each_row(head_.v, [&](int slot, const uint4& vector) {
      if (slot >= live_) return;
      const float p = p_[slot];
      const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 pair = detail::unpack_pair<T>(words[w]);
        acc[2 * w] = fmaf(p, pair.x, acc[2 * w]);
        acc[2 * w + 1] = fmaf(p, pair.y, acc[2 * w + 1]);
      }
    });
    const int column = threadIdx.x % kLanes;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
#pragma unroll
      for (int offset = kLanes; offset < 32; offset *= 2) {
        acc[e] += __shfl_xor_sync(0xffffffffu, acc[e], offset);
      }
    }
    if (threadIdx.x % 32 < kLanes && column < kVectors) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        partial_[threadIdx.x / 32 * HeadDim + column * 8 + e] = acc[e];
      }
    }
    __syncthreads();
    for (int d = threadIdx.x; d < HeadDim; d += Threads) {
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) sum += partial_[warp * HeadDim + d];
      out[d] = detail::from_float<T>(sum * inverse_sum);
    }
  }

  /// Chooses where the next token goes: the next empty slot, or the victim's.
  __device__ void finish(int slot) {
    if (head_.score == nullptr || live_ < head_.capacity) {
      if (threadIdx.x == 0) *head_.free_slot = slot + 1;
      return;
    }
    unsigned long long best = kNoVictim;
    int best_slot = 0;
    for (int i = threadIdx.x; i < live_; i += Threads) {
      const int position = head_.position[i];
      if (position < head_.sinks || position > head_.step - head_.recent) continue;
      const unsigned long long key = victim_key(head_.score[i], position);
      if (key < best) {
        best = key;
        best_slot = i;
      }
    }
    const unsigned long long winner = block_reduce<Threads>(
        best, reduce_keys_,
        [](unsigned long long a, unsigned long long b) { return a < b ? a : b; });
    // Positions are unique, so exactly one thread holds the winner.
    if (winner == best && best != kNoVictim) {
      *head_.free_slot = best_slot;
      head_.position[best_slot] = -1;
      head_.score[best_slot] = 0.0f;
    }
  }

  const h2o_head<T>& head_;
  const rotary_view& rotary_;
  const int live_;
  unsigned long long* reduce_keys_;
  float* query_;
  float* partial_;
  float* p_;
};

WATERWEIGHT_ARCH_NAMESPACE_END
