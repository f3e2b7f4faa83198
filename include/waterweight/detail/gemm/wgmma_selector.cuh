// When the wgmma kernel is used, and with which tiles.
#pragma once

#include <waterweight/detail/gemm/policy.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

constexpr bool compiled_for(int architecture) {
  for (int compiled : {__CUDA_ARCH_LIST__}) {
    if (compiled == architecture) return true;
  }
  return false;
}

/// There is code for sm_90 or sm_90a; which of them only the kernel itself tells.
inline constexpr bool kCompiledForSm90 = compiled_for(900);

constexpr bool may_use_wgmma(const device_info& device, std::int64_t m) {
  return kCompiledForSm90 && device.compute_capability == 90 && m > 16;
}

/// Only blocks of the tiled kernel share tiles through the workspace.
constexpr std::size_t gemm_workspace_bytes(const device_info& device, std::int64_t m) {
  return m > 16 && !may_use_wgmma(device, m) ? tiled_workspace_bytes(device.sm_count) : 0;
}

/// What a tile took on H200 with INT8 weights, in nanoseconds.
struct wgmma_tile_time {
  int fixed;   ///< launch, first loads, storing
  int block;   ///< 64 elements of K on a card otherwise idle
  int shared;  ///< what is added to that when all SMs work, on as many tiles as fit
};

/// The default choice: the plan that should take the least time by what its parts took on H200.
/// 16-bit weights change all of them alike. On the shapes of gemm_bench at M = 32 to 4096 the plan
/// takes 1 % longer than the fastest one in the mean; of those shapes' cuts for up to
/// 32 tokens it takes the fastest but for 2 %.
struct default_wgmma_selector {
  static constexpr wgmma_tile_time time_of(wgmma_tile tile) {
    switch (tile) {
      case wgmma_tile::rows64_tokens16:
        return {1750, 70, 165};
      case wgmma_tile::rows144_tokens16:
        return {1750, 100, 195};
      case wgmma_tile::rows192_tokens16:
        return {1900, 110, 260};
      case wgmma_tile::rows48_tokens32:
        return {2150, 105, 90};
      case wgmma_tile::rows64_tokens32:
        return {2400, 70, 200};
      case wgmma_tile::rows144_tokens32:
        return {2800, 60, 250};
      case wgmma_tile::rows128_tokens32:
        return {1900, 210, 30};
      case wgmma_tile::rows192_tokens32:
        return {2600, 280, 20};
      case wgmma_tile::rows128_tokens64:
        return {1900, 225, 60};
      case wgmma_tile::rows192_tokens64:
        return {3250, 360, 30};
      case wgmma_tile::rows128_tokens88:
        return {2000, 290, 20};
      case wgmma_tile::rows128_tokens128:
        return {2000, 310, 80};
      case wgmma_tile::rows192_tokens128:
        return {2400, 470, 90};
      case wgmma_tile::rows128_tokens176:
        return {2200, 405, 90};
      default:
        return {2200, 620, 90};
    }
  }
  static constexpr int kSecondLaunch = 4000;
  /// Bytes of INT8 weights in a microsecond; mma_consumer's tiles come closer to the card's 4.5 MB.
  static constexpr std::int64_t weights_per_microsecond(const wgmma_policy& p) {
    return p.mma() ? 4300000 : p.tokens > 32 ? 3600000 : 3300000;
  }
  static constexpr std::int64_t kNever = std::int64_t{1} << 62;

  /// What blocks that share K take to add their sums.
  static constexpr int adding(const wgmma_policy& p, int splits) {
    constexpr int kOf64Tokens[kWgmmaMaxSplits + 1] = {0, 0, 850, 970, 1170, 1630, 1950, 2350, 2800};
    constexpr int kHalvesOf64Tokens = 430;
    // Most of what few tokens take is waiting for each other, and exchanging halves takes no longer
    // than storing a whole tile.
    if (p.mma()) return splits == 2 ? 0 : kOf64Tokens[splits] * (p.tokens == 16 ? 65 : 100) / 100;
    return (p.halves() && splits == 2 ? kHalvesOf64Tokens : kOf64Tokens[splits]) * p.tokens / 64;
  }
  /// How many clusters run at once: a cluster stays inside a GPC, which leaves places idle. The
  /// share of places in thousandths, rounded up: that of the 39 clusters of 3, 30 of 4, 22 of 5, 17
  /// of 6 and 15 of 7 or 8 on the 132 SMs of H200.
  static constexpr int clusters(int splits, int places) {
    constexpr int kShare[kWgmmaMaxSplits + 1] = {0, 1000, 1000, 887, 910, 834, 773, 796, 910};
    return places * kShare[splits] / 1000 / splits;
  }

  static constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

  struct shape {
    int m, n, k;
    bool quantized;
  };

  /// With INT8 weights, up to 32 tokens have tiles of their own.
  static constexpr bool fits(const wgmma_policy& p, const shape& s) {
    if (!s.quantized || s.m > 32) return p.takes(s.quantized) && !p.mma();
    return p.mma() && p.tokens == divide_up(s.m, 16) * 16;
  }

  static constexpr std::int64_t time(wgmma_cut cut, int sms, const shape& s) {
    const wgmma_policy p = wgmma_policy_of(cut.tile);
    if (!fits(p, s)) return kNever;
    const wgmma_tile_time t = time_of(cut.tile);
    const int places = p.residents * sms;
    const int blocks = divide_up(s.k, kWgmmaBlockK), token_tiles = divide_up(s.m, p.tokens);
    std::int64_t needed = 0;
    if (cut.splits == 1) {
      const int units = token_tiles * divide_up(s.n, p.rows() * p.multicast);
      const int at_once = places > p.multicast ? places / p.multicast : 1;
      const int busy = units < at_once ? units : at_once;
      needed = std::int64_t{divide_up(units, at_once)} *
               (t.fixed + blocks * std::int64_t{t.block + t.shared * busy / at_once});
    } else {
      const int units = token_tiles * divide_up(s.n, p.rows());
      // All must run at once.
      if (units > clusters(cut.splits, places) || blocks < 4 * cut.splits) return kNever;
      needed = t.fixed + adding(p, cut.splits) +
               divide_up(blocks, cut.splits) *
                   std::int64_t{t.block + t.shared * units * cut.splits / places};
    }
    const std::int64_t to_read =
        t.fixed + std::int64_t{s.n} * s.k * 1000 / weights_per_microsecond(p);
    return needed > to_read ? needed : to_read;
  }

  /// The fastest cut of a product that is computed in one launch.
  static constexpr std::int64_t fastest(int sms, const shape& s, wgmma_cut* best) {
    std::int64_t least = kNever;
    for (int i = 0; i < kWgmmaTiles; ++i) {
      const wgmma_tile tile = static_cast<wgmma_tile>(i);
      // Splitting K pays while tiles are few.
      for (int splits = 1; splits <= (s.m <= 512 ? kWgmmaMaxSplits : 2); ++splits) {
        const std::int64_t needed = time({tile, splits}, sms, s);
        if (needed < least) {
          least = needed;
          *best = {tile, splits};
        }
      }
    }
    return least;
  }

  constexpr wgmma_plan operator()(const device_info& device, std::int64_t m, std::int64_t n,
                                  std::int64_t k, bool quantized) const {
    const int sms = device.sm_count;
    const shape all{static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), quantized};
    wgmma_plan plan{{wgmma_tile::rows128_tokens256, 1}, n, {wgmma_tile::rows128_tokens256, 1}};
    std::int64_t least = fastest(sms, all, &plan.first);
    // Whole rounds of one tile first, what is left in another way.
    for (wgmma_tile tile : {wgmma_tile::rows128_tokens256, wgmma_tile::rows128_tokens176,
                            wgmma_tile::rows192_tokens128, wgmma_tile::rows128_tokens128}) {
      const wgmma_policy p = wgmma_policy_of(tile);
      const int span = p.rows() * p.multicast, token_tiles = divide_up(all.m, p.tokens);
      const int at_once = sms > p.multicast ? sms / p.multicast : 1;
      const int rounds = token_tiles * divide_up(all.n, span) / at_once;
      const std::int64_t rows = std::int64_t{rounds} * at_once / token_tiles * span;
      if (rows <= 0 || rows >= n) continue;
      const wgmma_cut first{tile, 1};
      wgmma_cut rest{};
      const std::int64_t needed =
          time(first, sms, {all.m, static_cast<int>(rows), all.k, quantized}) + kSecondLaunch +
          fastest(sms, {all.m, static_cast<int>(n - rows), all.k, quantized}, &rest);
      if (needed < least) {
        least = needed;
        plan = {first, rows, rest};
      }
    }
    return plan;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
