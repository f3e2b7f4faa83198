// Everything: for those who want one include.
#pragma once

#include <waterweight/attention.cuh>
#include <waterweight/device/epilogue.cuh>
#include <waterweight/device/fixed_point.cuh>
#include <waterweight/device/gemv.cuh>
#include <waterweight/device/h2o_account.cuh>
#include <waterweight/device/h2o_attend.cuh>
#include <waterweight/device/h2o_evict.cuh>
#include <waterweight/device/prologue.cuh>
#include <waterweight/device/reduce.cuh>
#include <waterweight/device/rotary.cuh>
#include <waterweight/device_info.cuh>
#include <waterweight/h2o.cuh>
#include <waterweight/quantize.cuh>
#include <waterweight/types.hpp>
#include <waterweight/version.hpp>
#include <waterweight/w8a16_gemm.cuh>
