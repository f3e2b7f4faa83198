// Block-level H2O decode attention, first half: one block attends over one split of one KV head's
// slots. h2o_account.cuh merges the splits and keeps the scores.
//
// At batch 1 a model has fewer heads than the card has SMs, so the slots of a head are divided
// among blocks. A split is at most as many slots as the block has threads: all its keys and values
// are on their way to shared memory before the query exists, one thread then scores one key, and
// the time of a split is one memory latency and two reductions, not a loop of them.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/device/flagged.cuh>
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

  /// Of query head h of the group.
  __device__ __forceinline__ void store_stat(int h, float maximum, float sum) const {
    stat[h * stat_stride] = make_float2(maximum, sum);
  }
  __device__ __forceinline__ void store_partial(int h, int d, float value) const {
    partial[h * partial_stride + d] = value;
  }
};

/// The same of a group of one, for a merge in another block that is running: the results say
/// themselves that they are there. Nothing says so of the logits.
struct h2o_flagged_output {
  float* logit;
  flagged_word* stat;     ///< [2], 16-byte aligned
  flagged_word* partial;  ///< [head_dim]
  std::uint32_t epoch;
  static constexpr std::int64_t logit_stride = 0;

  __device__ __forceinline__ void store_stat(int /*h*/, float maximum, float sum) const {
    store_flagged(stat, __float_as_uint(maximum), epoch);
    store_flagged(stat + 1, __float_as_uint(sum), epoch);
  }
  __device__ __forceinline__ void store_partial(int /*h*/, int d, float value) const {
    store_flagged(partial + d, __float_as_uint(value), epoch);
  }
};

/// How a block of Threads threads works on rows of HeadDim elements.
template <int HeadDim, int Threads>
struct h2o_split_shape {
  static constexpr int kVectors = HeadDim / 8;  ///< 16-byte vectors of a row
  static constexpr int kSlots = Threads;        ///< slots in shared memory at a time
  /// Rows in shared memory are padded by 16 bytes: threads that read neighbouring rows at the same
  /// column then meet different banks, for every supported HeadDim.
  static constexpr int kPitch = HeadDim + 8;
  /// The values are summed the other way round: threads along the row, this many rows at a time.
  static constexpr int kGroups = Threads / kVectors;

  /// Bytes of shared memory for splits of up to `slots` slots; elements are of 2 bytes.
  WATERWEIGHT_HOST_DEVICE static constexpr std::size_t shared_bytes(int slots) {
    const int rows = slots < kSlots ? slots : kSlots;
    return sizeof(float) * (HeadDim + 2 * (Threads / 32) + kGroups * HeadDim + padded(slots)) +
           std::size_t{2} * 2 * kPitch * static_cast<std::size_t>(rows);
  }
  /// Keeps what follows 16-byte aligned.
  WATERWEIGHT_HOST_DEVICE static constexpr std::size_t padded(int slots) {
    return (static_cast<std::size_t>(slots) + 3) / 4 * 4;
  }
};

/// One split. Use: begin(), which requests keys and values, then attend() once q, k_new and v_new
/// are ready. The split is [slot_begin, slot_end) with slot_end <= head.live; it may be empty.
/// shared: shared_bytes(most_slots) of h2o_split_shape, 16-byte aligned, for splits of at most
/// `most_slots`.
template <class T, int HeadDim, int Threads, int Barrier = 0>
class block_h2o_attend {
 public:
  using shape = h2o_split_shape<HeadDim, Threads>;

  __device__ __forceinline__ block_h2o_attend(const h2o_head<T>& head, int slot_begin, int slot_end,
                                              int most_slots, void* shared)
      : head_(head), begin_(slot_begin), count_(max(slot_end - slot_begin, 0)) {
    query_ = static_cast<float*>(shared);
    scratch_ = query_ + HeadDim;
    partial_ = scratch_ + 2 * (Threads / 32);
    p_ = partial_ + shape::kGroups * HeadDim;
    keys_ = reinterpret_cast<T*>(p_ + shape::padded(most_slots));
    values_ = keys_ + min(most_slots, shape::kSlots) * shape::kPitch;
  }

  /// Requests the first round of slots as the last token left them: this token's own is not read.
  __device__ __forceinline__ void begin() const {
    begin_keys();
    begin_values();
  }

  /// The two halves of begin().
  __device__ __forceinline__ void begin_keys() const { load(head_.k, keys_, 0, head_.fresh); }
  __device__ __forceinline__ void begin_values() const { load(head_.v, values_, 0, head_.fresh); }

  /// q: head h of the group at q + h * q_stride, not yet rotated; k_new, v_new: this KV head's.
  /// The block that owns the fresh slot also writes it to the cache. LaterCopies: groups of
  /// asynchronous copies this thread has committed since begin(), which need not be waited for (the
  /// begin() of another split is 2).
  template <int LaterCopies = 0>
  __device__ void attend(const T* q, std::int64_t q_stride, const T* k_new, const T* v_new,
                         int group_size, const rotary_view& rotary, float scale,
                         const h2o_split_output& out) {
    const auto nothing = [] {};
    attend_then<LaterCopies>(q, q_stride, k_new, v_new, group_size, rotary, scale, out, nothing,
                             nothing);
  }

  /// The same for a group of one, followed by another split in the same shared memory:
  /// begin_next_keys() and begin_next_values() are called as soon as there is room for them.
  template <class Output, class BeginKeys, class BeginValues>
  __device__ void attend_before(const T* q, const T* k_new, const T* v_new,
                                const rotary_view& rotary, float scale, const Output& out,
                                const BeginKeys& begin_next_keys,
                                const BeginValues& begin_next_values) {
    attend_then<0, 1>(q, 0, k_new, v_new, 1, rotary, scale, out, begin_next_keys,
                      begin_next_values);
  }

 private:
  /// CopiesBetween: groups of copies that after_keys() commits.
  template <int LaterCopies, int CopiesBetween = 0, class Output, class AfterKeys,
            class AfterValues>
  __device__ __forceinline__ void attend_then(const T* q, std::int64_t q_stride, const T* k_new,
                                              const T* v_new, int group_size,
                                              const rotary_view& rotary, float scale,
                                              const Output& out, const AfterKeys& after_keys,
                                              const AfterValues& after_values) {
    if (head_.fresh >= begin_ && head_.fresh < begin_ + count_) append(k_new, v_new, rotary);
    for (int h = 0; h < group_size; ++h) {
      for (int d = threadIdx.x; d < HeadDim; d += Threads) {
        query_[d] = rotated_element(q + h * q_stride, d, rotary, head_.step);
      }
      const float maximum = compute_logits<LaterCopies>(scale * 1.4426950408889634f,
                                                        out.logit + h * out.logit_stride);
      after_keys();
      const float sum = exponentiate<LaterCopies + CopiesBetween>(maximum);
      if (threadIdx.x == 0) out.store_stat(h, maximum, sum);
      weigh_values(sum, h, out, after_values);
      if (h + 1 < group_size) group_sync<Threads, Barrier>();  // shared memory is written again
    }
  }

  /// Puts this token's key and value into the cache, and into shared memory if its round is there.
  __device__ void append(const T* k_new, const T* v_new, const rotary_view& rotary) {
    const std::int64_t row = std::int64_t{head_.fresh} * HeadDim;
    const int shared_row = head_.fresh - begin_;
    for (int d = threadIdx.x; d < HeadDim; d += Threads) {
      const T key = detail::from_float<T>(rotated_element(k_new, d, rotary, head_.step));
      const T value = v_new[d];
      head_.k[row + d] = key;
      head_.v[row + d] = value;
      if (shared_row < shape::kSlots) {
        keys_[shared_row * shape::kPitch + d] = key;
        values_[shared_row * shape::kPitch + d] = value;
      }
    }
    if (threadIdx.x == 0) head_.position[head_.fresh] = head_.step;
  }

  /// Starts the copy of one round of rows, except slot `but`.
  __device__ __forceinline__ void load(const T* rows, T* tile, int round, int but = -1) const {
    const int first = round * shape::kSlots, rows_here = min(count_ - first, shape::kSlots);
    const auto copy = [&](int i) {
      const int row = i / shape::kVectors, column = i % shape::kVectors * 8;
      const int slot = begin_ + first + row;
      if (slot == but) return;
      detail::cp_async_16(tile + row * shape::kPitch + column,
                          rows + std::int64_t{slot} * HeadDim + column, 16);
    };
    const int vectors = rows_here * shape::kVectors;
    if constexpr (Barrier == 0) {
      for (int i = threadIdx.x; i < vectors; i += Threads) copy(i);
    } else {  // a block of several groups: they share registers and the instruction cache
#pragma unroll 1
      for (int i = threadIdx.x; i < vectors; i += Threads) copy(i);
    }
    detail::cp_async_commit();
  }

  /// Makes `round` the one in `tile`. Later rounds are read when they are due: the fresh row of one
  /// of them was written by this block, before a barrier.
  __device__ __forceinline__ void fetch(const T* rows, T* tile, int round, int* present) const {
    if (round == *present) return;
    group_sync<Threads, Barrier>();  // everybody has read the round that is there
    load(rows, tile, round);
    *present = round;
    detail::cp_async_wait<0>();
    group_sync<Threads, Barrier>();
  }

  /// p_[i] and logit[slot] become the scores of this split; returns their maximum, -inf for none.
  template <int LaterCopies>
  __device__ __forceinline__ float compute_logits(float scale_log2, float* logit) {
    detail::cp_async_wait<1 + LaterCopies>();  // the keys; the values may still be on their way
    group_sync<Threads, Barrier>();            // everybody's, the query and the fresh rows
    float maximum = -INFINITY;
    for (int round = 0; round * shape::kSlots < count_; ++round) {
      fetch(head_.k, keys_, round, &round_of_keys_);
      const int i = round * shape::kSlots + static_cast<int>(threadIdx.x);
      if (i >= count_) continue;
      const T* key = keys_ + threadIdx.x * shape::kPitch;
      float dot[2] = {0.0f, 0.0f};
#pragma unroll
      for (int vector = 0; vector < shape::kVectors; ++vector) {
        const uint4 words = *reinterpret_cast<const uint4*>(key + 8 * vector);
        const float4 low = *reinterpret_cast<const float4*>(query_ + 8 * vector);
        const float4 high = *reinterpret_cast<const float4*>(query_ + 8 * vector + 4);
        const float2 k0 = detail::unpack_pair<T>(words.x), k1 = detail::unpack_pair<T>(words.y);
        const float2 k2 = detail::unpack_pair<T>(words.z), k3 = detail::unpack_pair<T>(words.w);
        dot[0] =
            fmaf(k0.x, low.x, fmaf(k1.x, low.z, fmaf(k2.x, high.x, fmaf(k3.x, high.z, dot[0]))));
        dot[1] =
            fmaf(k0.y, low.y, fmaf(k1.y, low.w, fmaf(k2.y, high.y, fmaf(k3.y, high.w, dot[1]))));
      }
      const float score = (dot[0] + dot[1]) * scale_log2;
      p_[i] = score;
      logit[begin_ + i] = score;
      maximum = fmaxf(maximum, score);
    }
    return block_reduce<Threads, Barrier>(maximum, scratch_,
                                          [](float a, float b) { return fmaxf(a, b); });
  }

  /// p_[i] becomes exp2(logit - maximum); returns the sum.
  template <int LaterCopies>
  __device__ __forceinline__ float exponentiate(float maximum) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count_; i += Threads) {  // the thread that wrote p_[i]
      p_[i] = exp2f(p_[i] - maximum);
      sum += p_[i];
    }
    detail::cp_async_wait<LaterCopies>();  // the values
    // The barrier inside also publishes p_ and the values.
    return block_reduce<Threads, Barrier>(sum, scratch_ + Threads / 32,
                                          [](float a, float b) { return a + b; });
  }

  /// all_read() is called once the values are not needed any more.
  template <class Output, class AllRead>
  __device__ __forceinline__ void weigh_values(float sum, int h, const Output& out,
                                               const AllRead& all_read) {
    const int group = static_cast<int>(threadIdx.x) / shape::kVectors;
    const int column = static_cast<int>(threadIdx.x) % shape::kVectors * 8;
    float acc[8] = {};
    for (int round = 0; round * shape::kSlots < count_; ++round) {
      fetch(head_.v, values_, round, &round_of_values_);
      const int first = round * shape::kSlots, rows = min(count_ - first, shape::kSlots);
      if (group >= shape::kGroups) continue;
#pragma unroll 4
      for (int row = group; row < rows; row += shape::kGroups) {
        const uint4 vector =
            *reinterpret_cast<const uint4*>(values_ + row * shape::kPitch + column);
        const std::uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
        const float p = p_[first + row];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float2 pair = detail::unpack_pair<T>(words[w]);
          acc[2 * w] = fmaf(p, pair.x, acc[2 * w]);
          acc[2 * w + 1] = fmaf(p, pair.y, acc[2 * w + 1]);
        }
      }
    }
    if (group < shape::kGroups) {
      float* mine = partial_ + group * HeadDim + column;
      *reinterpret_cast<float4*>(mine) = make_float4(acc[0], acc[1], acc[2], acc[3]);
      *reinterpret_cast<float4*>(mine + 4) = make_float4(acc[4], acc[5], acc[6], acc[7]);
    }
    group_sync<Threads, Barrier>();
    all_read();
    const float inverse = sum > 0.0f ? 1.0f / sum : sum;  // empty: 0; NaN stays NaN
    for (int d = threadIdx.x; d < HeadDim; d += Threads) {
      float total = 0.0f;
#pragma unroll
      for (int g = 0; g < shape::kGroups; ++g) total += partial_[g * HeadDim + d];
      out.store_partial(h, d, total * inverse);
    }
  }

  h2o_head<T> head_;
  int begin_, count_;
  int round_of_keys_ = 0, round_of_values_ = 0;
  float *query_, *scratch_, *partial_, *p_;
  T *keys_, *values_;
};

WATERWEIGHT_ARCH_NAMESPACE_END
