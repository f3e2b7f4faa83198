// Every plan of the mma.sync GEMM against the fp64 reference, whatever the selector would choose.
#include <waterweight/detail/gemm/tiled_launch.cuh>

#include "tests/gemm/gemm_fixture.cuh"

namespace {

namespace detail = waterweight::detail;
using detail::tiled_plan;
using detail::tiled_tile;
using waterweight::matrix_view;

constexpr tiled_tile kTiles[] = {tiled_tile::m64_n64, tiled_tile::m128_n128, tiled_tile::m128_n256};

template <class Types>
class TiledGemmTest : public test::GemmFixture<Types> {
 protected:
  using typename test::GemmFixture<Types>::T;
  using typename test::GemmFixture<Types>::Element;
  using typename test::GemmFixture<Types>::Out;

  void SetUp() override {
    test::GemmFixture<Types>::SetUp();
    if (this->IsSkipped() || this->HasFatalFailure()) return;
    parts = std::make_unique<test::DeviceBuffer<unsigned char>>(
        detail::tiled_workspace_bytes(this->device.sm_count));
    ASSERT_CUDA(cudaMemset(parts->data(), 0, parts->size()));
    ASSERT_CUDA(cudaDeviceSynchronize());
  }
  void TearDown() override {
    test::GemmFixture<Types>::TearDown();
    if (parts == nullptr) return;
    const std::vector<unsigned char> left = parts->download();
    EXPECT_TRUE(std::all_of(left.begin(), left.end(), [](unsigned char byte) { return byte == 0; }))
        << "the sums were not cleared";
  }

  /// `run` launches: a member of tiled_launcher, called on one.
  template <class Run>
  void check(const test::Shape& shape, test::Kind kind, std::mt19937& generator, const Run& run) {
    const auto gemm = [&](matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
                          matrix_view<Out> y, const auto& epilogue) {
      const detail::weight_operand<Element> operand{w, scale, static_cast<int>(y.cols),
                                                    static_cast<int>(x.cols), w_ld};
      using Epilogue = std::decay_t<decltype(epilogue)>;
      return run(detail::tiled_launcher<T, Element, Out, Epilogue>{x, operand, y, epilogue,
                                                                   parts->data(), this->stream});
    };
    test::GemmFixture<Types>::check(shape, kind, generator, gemm);
  }

  /// Rows start on 16-byte boundaries: K and the pads must see to it.
  void check(const test::Shape& shape, test::Kind kind, tiled_plan plan, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message() << "tile " << static_cast<int>(plan.tile) << ", whole "
                                      << plan.whole << ", splits " << plan.splits);
    if (detail::tiled_policy_of(plan.tile, sizeof(Element)).shared_bytes(sizeof(Element)) >
        this->device.max_shared_bytes) {
      return;
    }
    check(shape, kind, generator, [&](const auto& launcher) { return launcher.run(plan); });
  }

 private:
  std::unique_ptr<test::DeviceBuffer<unsigned char>> parts;
};
using Combinations = ::testing::Types<
    std::tuple<__half, std::int8_t, __half>, std::tuple<__nv_bfloat16, std::int8_t, float>,
    std::tuple<__half, __half, float>, std::tuple<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>>;
TYPED_TEST_SUITE(TiledGemmTest, Combinations);

TYPED_TEST(TiledGemmTest, EveryTileWithTailsInEveryDimension) {
  std::mt19937 generator(31);
  int i = 0;
  for (tiled_tile tile : kTiles) {
    this->check({150, 405, 200, 24, 24, 0}, static_cast<test::Kind>(i++ % 5), {tile}, generator);
    this->check({17, 130, 72, 8, 8, 1}, static_cast<test::Kind>(i++ % 5), {tile}, generator);
    this->check({129, 400, 336, 0, 0, 8}, static_cast<test::Kind>(i++ % 5), {tile}, generator);
    this->check({1, 1, 16, 0, 0, 0}, static_cast<test::Kind>(i++ % 5), {tile}, generator);
  }
}

TYPED_TEST(TiledGemmTest, EveryLengthOfTheLastStepOfK) {
  std::mt19937 generator(32);
  int i = 0;
  for (int k = 1; k <= 130; k += 7) {
    const int pad = (16 - k % 16) % 16;
    this->check({70, 40, k, pad, pad, 2}, static_cast<test::Kind>(i % 5), {kTiles[i % 3]},
                generator);
    ++i;
  }
}

TYPED_TEST(TiledGemmTest, MoreTilesOfRowsThanAGroupHas) {
  std::mt19937 generator(33);
  for (tiled_tile tile : kTiles) {
    this->check({2100, 70, 32, 0, 0, 0}, test::Kind::bias, {tile}, generator);
  }
}

TYPED_TEST(TiledGemmTest, TilesSharedByAnyNumberOfBlocks) {
  std::mt19937 generator(35);
  int i = 0;
  for (tiled_tile tile : kTiles) {
    for (int splits : {2, 3, 5, 8}) {
      // From one part for each kTiledBlockK of K to long ones of different lengths, with none, one
      // or nearly all of the tiles whole.
      const int k = 64 * splits * (1 + i % 2) - 16 * (i % 4);
      const int whole = i % 4 < 2 ? i % 4 : i % 4 + 1;
      this->check({131, 270, k, 0, 0, i % 2 * 8}, static_cast<test::Kind>(i % 5),
                  {tile, whole, splits}, generator);
      ++i;
    }
  }
}

// A device with few SMs shares the tiles of small products as others do those of large ones.
TYPED_TEST(TiledGemmTest, WhatTheSelectorChoosesForFewSms) {
  std::mt19937 generator(36);
  const std::size_t element_bytes = sizeof(typename TestFixture::Element);
  int shared = 0;
  for (int sms = 1; sms <= 8; ++sms) {
    waterweight::device_info device = this->device;
    device.sm_count = sms;
    const test::Shape shape{40 * sms, 130 + 50 * sms, 1152 - 128 * sms, 0, 0, 0};
    const std::size_t workspace = detail::tiled_workspace_bytes(sms);
    const detail::default_tiled_selector selector;
    const tiled_plan plan = selector(device, shape.m, shape.n, shape.k, element_bytes, workspace);
    shared += plan.splits > 1;
    EXPECT_EQ(1, selector(device, shape.m, shape.n, shape.k, element_bytes, 0).splits)
        << "without a workspace nothing can be shared";
    this->check(shape, test::Kind::residual, plan, generator);
  }
  EXPECT_GT(shared, 0);
}

TYPED_TEST(TiledGemmTest, RowsThatStartAnywhere) {
  std::mt19937 generator(34);
  int i = 0;
  for (int k : {1, 15, 64, 65, 127, 260}) {
    const test::Shape shape{test::random_int(1, 150, generator),
                            test::random_int(1, 150, generator),
                            k,
                            test::random_int(0, 9, generator),
                            test::random_int(0, 9, generator),
                            test::random_int(0, 3, generator)};
    this->check(shape, static_cast<test::Kind>(i++ % 5), generator, [](const auto& launcher) {
      return launcher.template run<tiled_tile::m64_n64, false>({tiled_tile::m64_n64});
    });
  }
}

}  // namespace
