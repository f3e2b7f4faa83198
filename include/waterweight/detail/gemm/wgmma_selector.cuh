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

constexpr std::size_t gemm_workspace_bytes(const device_info& device, std::int64_t m) {
  return may_use_wgmma(device, m) ? wgmma_workspace_bytes(device.sm_count + 1) : 0;
}

/// The default choice: the plan that should take the least time by what each part of it took on
/// H200 (in nanoseconds, INT8 weights; those of 16 bit differ by less than the plans do).
struct default_wgmma_selector {
  static constexpr std::int64_t kLaunch = 3500;  ///< whatever the shape: launch, first loads
  static constexpr std::int64_t kRound = 1200;   ///< storing a tile, filling the pipeline again
  static constexpr std::int64_t kShared = 9000;  ///< sums through the workspace
  static constexpr std::int64_t kClusterSums = 1200;  ///< sums through distributed shared memory
  static constexpr std::int64_t kBytesPerMicrosecond = 3600000;  ///< weights from device memory

  /// 64 elements of K of one tile, all else idle.
  static constexpr std::int64_t block_time(wgmma_tile tile) {
    switch (tile) {
      case wgmma_tile::rows128_tokens256:
        return 610;
      case wgmma_tile::rows192_tokens128:
        return 490;
      case wgmma_tile::split_rows128_tokens128:
        return 330;
      default:
        return 190;
    }
  }

  static constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
  }

  static constexpr std::int64_t time(wgmma_plan plan, int sms, std::int64_t m, std::int64_t n,
                                     std::int64_t k) {
    const wgmma_policy p = wgmma_policy_of(plan.tile);
    const std::int64_t units = divide_up(m, p.tokens) * divide_up(n, p.rows() * p.multicast);
    const std::int64_t tile = divide_up(k, 64) * block_time(plan.tile);
    if (!p.persistent) {
      // Clusters do not cross the borders of GPCs: large ones leave SMs idle.
      const int clusters = plan.splits <= 2 ? sms / plan.splits : (sms - 15) / plan.splits;
      const std::int64_t rounds = divide_up(units, clusters > 0 ? clusters : 1);
      const std::int64_t sums = plan.splits > 1 ? kClusterSums : 0;
      return kLaunch + rounds * (kRound + sums + tile / plan.splits);
    }
    const int clusters = sms > p.multicast ? sms / p.multicast : 1;
    if (plan.splits == 1) return kLaunch + divide_up(units, clusters) * (kRound + tile);
    return kLaunch + kShared + units * (kRound + tile) / clusters;
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
      // Each block of a cluster needs a stage of K.
      if (plan.splits > 1 && k < plan.splits * 2 * kWgmmaBlockK) continue;
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
