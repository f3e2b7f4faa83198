// Each translation unit runs the device code it was compiled with, whatever else is linked.
#include <gtest/gtest.h>

#include "tests/link/probe.hpp"

namespace {

using link_test::Probe;

constexpr int no_device = 100, driver_missing = 35, no_kernel_image = 209;

class Link : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    ptx_ = link_test::probe_compute_80(GetParam());
    if (ptx_.status == no_device || ptx_.status == driver_missing) GTEST_SKIP() << "no GPU";
  }

  Probe ptx_;
};

TEST_P(Link, PtxUnitRunsItsOwnCode) {
  ASSERT_EQ(ptx_.status, 0);
  EXPECT_EQ(ptx_.arch, 800);
}

TEST_P(Link, NativeUnitRunsItsOwnCodeOrSaysThatItHasNone) {
  const Probe native = link_test::probe_sm_90(GetParam());
  if (native.status == 0) {
    EXPECT_EQ(native.arch, 900);
  } else {
    EXPECT_EQ(native.status, no_kernel_image);
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, Link, testing::Values(1, 200));

}  // namespace
