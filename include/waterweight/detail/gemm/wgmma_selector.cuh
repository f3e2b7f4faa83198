// When the wgmma kernel is used, with which tile, and what it needs of the workspace.
#pragma once

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

constexpr std::size_t gemm_workspace_bytes(const device_info&, std::int64_t) { return 0; }

struct default_wgmma_selector {
  constexpr wgmma_plan operator()(const device_info&, std::int64_t m, std::int64_t, std::int64_t) const {
    return {m <= 64 ? wgmma_tile::rows128_tokens64 : wgmma_tile::rows128_tokens256, 1};
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
