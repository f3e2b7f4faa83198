#include "examples/pythia/model/host_attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <waterweight/reference/access.hpp>
#include "examples/pythia/model/host_kernel.hpp"

namespace pythia {
namespace {

using waterweight::heads_view;
using waterweight::reference::head_data;

constexpr int kQueries = kPanel;  // rows per task: the diagonal then ends with a panel of keys

std::int64_t panel_count(std::int64_t n) { return (n + kPanel - 1) / kPanel; }

/// The keys and values of one head in the kernels' panels, zero beyond the last token.
struct PackedHead {
  std::vector<float> keys;    ///< [panels of tokens][head_dim][kPanel]
  std::vector<float> values;  ///< [panels of head_dim][tokens][kPanel]
};

PackedHead pack_head(const heads_view<const float>& k, const heads_view<const float>& v, int head) {
  const std::int64_t dim = k.head_dim;
  PackedHead packed;
  packed.keys.resize(static_cast<std::size_t>(panel_count(k.tokens) * dim * kPanel));
  packed.values.resize(static_cast<std::size_t>(panel_count(dim) * k.tokens * kPanel));
  for (int t = 0; t < k.tokens; ++t) {
    const float* key = head_data(k, 0, t, head);
    const float* value = head_data(v, 0, t, head);
    for (std::int64_t d = 0; d < dim; ++d) {
      packed.keys[(t / kPanel * dim + d) * kPanel + t % kPanel] = key[d];
      packed.values[(d / kPanel * k.tokens + t) * kPanel + d % kPanel] = value[d];
    }
  }
  return packed;
}

/// softmax(scale * row) over the first n of `width` values; the rest become 0.
void softmax_row(float* row, std::int64_t n, std::int64_t width, float scale) {
  float largest = row[0];
  for (std::int64_t j = 1; j < n; ++j) largest = std::max(largest, row[j]);
  float sum = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    row[j] = std::exp((row[j] - largest) * scale);
    sum += row[j];
  }
  const float inverse = 1.0f / sum;
  for (std::int64_t j = 0; j < n; ++j) row[j] *= inverse;
  std::fill(row + n, row + width, 0.0f);
}

/// kQueries rows of one head from query t0 on. mass [tokens], if any, gets their attention per key.
void attend_block(const heads_view<const float>& q, const PackedHead& packed, int head, int t0,
                  const heads_view<float>& out, float* mass, std::vector<float>& p) {
  const std::int64_t dim = q.head_dim;
  const std::int64_t rows = std::min(kQueries, q.tokens - t0);
  const std::int64_t keys = t0 + rows;
  const std::int64_t width = panel_count(keys) * kPanel;
  const HostKernels& kernels = host_kernels();
  p.assign(static_cast<std::size_t>(rows * width), 0.0f);
  for (std::int64_t panel = 0; panel < width / kPanel; ++panel) {
    kernels.multiply(head_data(q, 0, t0, head), q.token_stride, rows, dim,
                     packed.keys.data() + panel * dim * kPanel, p.data() + panel * kPanel, width);
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (std::int64_t i = 0; i < rows; ++i) {
    float* row = p.data() + i * width;
    softmax_row(row, t0 + i + 1, width, scale);
    if (mass) {
      for (std::int64_t j = 0; j <= t0 + i; ++j) mass[j] += row[j];
    }
  }
  float sums[kQueries * kPanel];
  for (std::int64_t d0 = 0; d0 < dim; d0 += kPanel) {
    std::fill_n(sums, rows * kPanel, 0.0f);
    kernels.multiply(p.data(), width, rows, keys,
                     packed.values.data() + d0 / kPanel * q.tokens * kPanel, sums, kPanel);
    const std::int64_t count = std::min<std::int64_t>(kPanel, dim - d0);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::copy_n(sums + i * kPanel, count, head_data(out, 0, t0 + static_cast<int>(i), head) + d0);
    }
  }
}

}  // namespace

void host_attention(ThreadPool& pool, const heads_view<const float>& q,
                    const heads_view<const float>& k, const heads_view<const float>& v,
                    const heads_view<float>& out, float* column_sums) {
  const std::int64_t heads = q.heads;
  const std::int64_t blocks = panel_count(q.tokens);
  const std::int64_t tokens = q.tokens;
  std::vector<PackedHead> packed(static_cast<std::size_t>(heads));
  pool.parallel_for(heads,
                    [&](std::int64_t h, int) { packed[h] = pack_head(k, v, static_cast<int>(h)); });
  // One partial column sum per block of queries, added up below in a fixed order.
  std::vector<float> partial(column_sums ? static_cast<std::size_t>(heads * blocks * tokens) : 0);
  std::vector<std::vector<float>> scratch(static_cast<std::size_t>(pool.size()));
  pool.parallel_for(heads * blocks, [&](std::int64_t index, int worker) {
    const std::int64_t block = blocks - 1 - index / heads;  // the longest first
    const std::int64_t head = index % heads;
    float* mass = column_sums ? partial.data() + (head * blocks + block) * tokens : nullptr;
    attend_block(q, packed[head], static_cast<int>(head), static_cast<int>(block) * kQueries, out,
                 mass, scratch[worker]);
  });
  if (!column_sums) return;
  pool.parallel_for(heads, [&](std::int64_t head, int) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (std::int64_t block = 0; block < blocks; ++block) {
        sum += partial[(head * blocks + block) * tokens + t];
      }
      column_sums[head * tokens + t] = static_cast<float>(sum);
    }
  });
}

}  // namespace pythia
