#include "tests/attention/decode_tests.cuh"

namespace {
INSTANTIATE_TYPED_TEST_SUITE_P(Fp16, DecodeTest, ::testing::Types<__half>);
}
