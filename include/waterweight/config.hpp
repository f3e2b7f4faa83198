// Namespaces, visibility and the few macros the headers share.
//
// Types live in waterweight::v0_1: they mean the same in every translation unit. Functions and
// kernels live one inline namespace deeper, named after __CUDA_ARCH_LIST__: two translation units
// built for different architectures then own different symbols, and the linker cannot silently
// hand one of them the other's code. Both namespaces are inline: users write waterweight::name.
#pragma once

#include <waterweight/version.hpp>

#define WATERWEIGHT_NAMESPACE_BEGIN \
  namespace waterweight {           \
  inline namespace v0_1 {
#define WATERWEIGHT_NAMESPACE_END \
  }                               \
  }

#if defined(__GNUC__) || defined(__clang__)
#define WATERWEIGHT_HIDDEN __attribute__((visibility("hidden")))
#else
#define WATERWEIGHT_HIDDEN
#endif

#if defined(__CUDACC__)

#if !defined(__CUDA_ARCH_LIST__)
#error "waterweight: the compiler does not define __CUDA_ARCH_LIST__; CUDA 11.5 or newer is needed"
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "waterweight: device code needs compute capability 8.0 or newer (-arch=sm_80 or above)"
#endif

// Joins the (comma-separated) architecture list into one identifier, e.g. sm800s900.
#define WATERWEIGHT_JOIN_ARCHES_(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ...) \
  sm##a##s##b##s##c##s##d##s##e##s##f##s##g##s##h##s##i##s##j##s##k##s##l##s##m##s##n##s##o##s##p
#define WATERWEIGHT_JOIN_ARCHES(...) WATERWEIGHT_JOIN_ARCHES_(__VA_ARGS__)
#define WATERWEIGHT_ARCH_NAMESPACE \
  WATERWEIGHT_JOIN_ARCHES(__CUDA_ARCH_LIST__, , , , , , , , , , , , , , , , , )

#define WATERWEIGHT_ARCH_NAMESPACE_BEGIN \
  namespace waterweight {                \
  inline namespace v0_1 {                \
  inline namespace WATERWEIGHT_ARCH_NAMESPACE WATERWEIGHT_HIDDEN {
#define WATERWEIGHT_ARCH_NAMESPACE_END \
  }                                    \
  }                                    \
  }

#define WATERWEIGHT_HOST_DEVICE __host__ __device__
#else
#define WATERWEIGHT_HOST_DEVICE
#endif
