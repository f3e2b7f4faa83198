#include "tests/attention/decode_tests.cuh"

namespace {
INSTANTIATE_TYPED_TEST_SUITE_P(Bf16, DecodeTest, ::testing::Types<__nv_bfloat16>);
}
