// When the wgmma kernel is used, with which tile, and what it needs of the workspace.
#pragma once

#include <waterweight/detail/gemm/wgmma_parts.cuh>
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

/// Blocks share tiles through the workspace, those of the wgmma kernel and of the tiled one alike.
constexpr std::size_t gemm_workspace_bytes(const device_info& device, std::int64_t m) {
  return m > 16 ? wgmma_workspace_bytes(device.sm_count + 1) : 0;
}

/// What a tile took on H200, in nanoseconds.
struct wgmma_tile_time {
  std::int64_t block;     ///< 64 elements of K
  std::int64_t fixed[4];  ///< launch, first loads, storing; with 1, 2, ... blocks that share K
};

/// The default choice: the plan that should take the least time by what its parts took on H200 with
/// INT8 weights (16-bit ones change all of them alike). On the shapes of gemm_bench at M = 64 to
/// 4096 it names the fastest plan, or one within a few per cent of it.
struct default_wgmma_selector {
  static constexpr wgmma_tile_time time_of(wgmma_tile tile) {
    switch (tile) {
      case wgmma_tile::rows128_tokens256:
        return {700, {2000, 0, 0, 0}};
      case wgmma_tile::rows192_tokens128:
        return {500, {4000, 0, 0, 0}};
      case wgmma_tile::split_rows128_tokens128:
        return {350, {3000, 4500, 6500, 6500}};
      default:
        return {250, {3700, 4400, 6200, 9000}};
    }
  }
  /// Sums through the workspace, and more where a tile has many parts.
  static constexpr std::int64_t kShared = 13000, kSharedPart = 3000;
  static constexpr std::int64_t kNever = std::int64_t{1} << 62;

  static constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
  }

  static constexpr std::int64_t time(wgmma_plan plan, int sms, std::int64_t m, std::int64_t n,
                                     std::int64_t k) {
    const wgmma_policy p = wgmma_policy_of(plan.tile);
    const wgmma_tile_time t = time_of(plan.tile);
    const std::int64_t units = divide_up(m, p.tokens) * divide_up(n, p.rows() * p.multicast);
    const std::int64_t blocks = divide_up(k, kWgmmaBlockK);
    if (p.persistent) {
      const int clusters = sms > p.multicast ? sms / p.multicast : 1;
      const std::int64_t tile = t.fixed[0] + blocks * t.block;
      if (plan.splits == 1) return divide_up(units, clusters) * tile;
      return kShared + kSharedPart * divide_up(clusters, units) + units * tile / clusters;
    }
    const std::int64_t fixed = t.fixed[plan.splits - 1];
    if (plan.splits > 1) {
      // A cluster stays inside a GPC, so that large ones leave SMs idle. All must run at once.
      const int slots = p.blocks_per_sm * (plan.splits == 2 ? sms : sms - 13);
      if (units * plan.splits > slots || k < plan.splits * 2 * kWgmmaBlockK) return kNever;
    }
    std::int64_t part = blocks * t.block / plan.splits;
    const std::int64_t rounds = divide_up(units * plan.splits, sms);
    if (p.blocks_per_sm == 1) return rounds * (fixed + part);
    // Alone on an SM, such a block has too few bytes under way to load at full speed.
    if (plan.splits == 1 && rounds == 1) part = part * 4 / 3;
    // What W costs to load and convert, it costs for every tile of tokens.
    if (m > p.tokens) part = part * 6 / 5;
    return fixed + rounds * part;
  }

  constexpr wgmma_plan operator()(const device_info& device, std::int64_t m, std::int64_t n,
                                  std::int64_t k) const {
    constexpr wgmma_plan kPlans[] = {
        {wgmma_tile::rows128_tokens256, 1},       {wgmma_tile::rows128_tokens256, 2},
        {wgmma_tile::rows192_tokens128, 1},       {wgmma_tile::split_rows128_tokens128, 1},
        {wgmma_tile::split_rows128_tokens128, 2}, {wgmma_tile::split_rows128_tokens128, 3},
        {wgmma_tile::split_rows128_tokens128, 4}, {wgmma_tile::split_rows128_tokens64, 1},
        {wgmma_tile::split_rows128_tokens64, 2},  {wgmma_tile::split_rows128_tokens64, 3},
        {wgmma_tile::split_rows128_tokens64, 4}};
    wgmma_plan best = kPlans[0];
    std::int64_t least = 0;
    for (const wgmma_plan& plan : kPlans) {
      const std::int64_t needed = time(plan, device.sm_count, m, n, k);
      if (least == 0 || needed < least) {
        best = plan;
        least = needed;
      }
    }
    return best;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
