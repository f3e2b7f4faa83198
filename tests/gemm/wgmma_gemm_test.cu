// Every tile of the wgmma GEMM, with every number of blocks sharing K, against the fp64 reference.
// Needs a device of compute capability 9.0 and code built for sm_90a.
#include <iterator>
#include <string>
#include <vector>

#include <waterweight/detail/gemm/launch.cuh>
#include <waterweight/detail/gemm/wgmma_launch.cuh>
#include <waterweight/detail/gemm/wgmma_selector.cuh>

#include "tests/gemm/gemm_fixture.cuh"

namespace {

namespace detail = waterweight::detail;
using detail::wgmma_cut;
using detail::wgmma_plan;
using detail::wgmma_tile;
using test::Kind;
using waterweight::matrix_view;

constexpr wgmma_tile kTiles[] = {
    wgmma_tile::rows64_tokens16,   wgmma_tile::rows144_tokens16,  wgmma_tile::rows192_tokens16,
    wgmma_tile::rows48_tokens32,   wgmma_tile::rows64_tokens32,   wgmma_tile::rows144_tokens32,
    wgmma_tile::rows128_tokens32,  wgmma_tile::rows192_tokens32,  wgmma_tile::rows128_tokens64,
    wgmma_tile::rows192_tokens64,  wgmma_tile::rows128_tokens88,  wgmma_tile::rows128_tokens128,
    wgmma_tile::rows192_tokens128, wgmma_tile::rows128_tokens176, wgmma_tile::rows128_tokens256};
static_assert(std::size(kTiles) == detail::kWgmmaTiles);

/// Those that take weights of type Element.
template <class Element>
std::vector<wgmma_tile> tiles_for() {
  std::vector<wgmma_tile> tiles;
  for (wgmma_tile tile : kTiles) {
    if (detail::wgmma_policy_of(tile).takes(detail::is_quantized_v<Element>)) tiles.push_back(tile);
  }
  return tiles;
}

// Each epilogue is a kernel more for every tile: one that reads what depends on the channel alone,
// and one that reads Y's shape too.
constexpr Kind kKinds[] = {Kind::bias, Kind::residual};
template <class Epilogue>
constexpr bool tested_with = false;
template <class T>
constexpr bool tested_with<waterweight::bias_epilogue<T>> = true;
template <class T, class R>
constexpr bool tested_with<waterweight::bias_residual_epilogue<T, R>> = true;
template <class T>
constexpr bool tested_with<test::AnyEpilogue<T>> = true;

template <class Types>
class WgmmaGemmTest : public test::GemmFixture<Types> {
 protected:
  using typename test::GemmFixture<Types>::T;
  using typename test::GemmFixture<Types>::Element;
  using typename test::GemmFixture<Types>::Out;

  void SetUp() override {
    test::GemmFixture<Types>::SetUp();
    if (this->IsSkipped() || this->HasFatalFailure()) return;
    T* none = nullptr;
    const Element* no_weights = nullptr;
    Out* no_y = nullptr;
    const auto launcher = make({none, 1, 1, 1}, no_weights, nullptr, 1, {no_y, 1, 1, 1},
                               waterweight::bias_epilogue<T>{});
    if (this->device.compute_capability != 90 || !launcher.present()) {
      GTEST_SKIP() << "no sm_90a code runs here";
    }
  }

  template <class Epilogue>
  auto make(matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
            matrix_view<Out> y, const Epilogue& epilogue) {
    const detail::weight_operand<Element> operand{w, scale, static_cast<int>(y.cols),
                                                  static_cast<int>(x.cols), w_ld};
    return detail::wgmma_launcher<T, Element, Out, Epilogue>{x,        operand,      y,
                                                             epilogue, this->stream, early_weights};
  }

  void check(const test::Shape& shape, Kind kind, const wgmma_plan& plan, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message()
                 << "tile " << static_cast<int>(plan.first.tile) << " splits " << plan.first.splits
                 << " for " << plan.rows << " rows, then tile " << static_cast<int>(plan.rest.tile)
                 << " splits " << plan.rest.splits);
    const auto gemm = [&](matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
                          matrix_view<Out> y, const auto& epilogue) {
      if constexpr (tested_with<std::decay_t<decltype(epilogue)>>) {
        return make(x, w, scale, w_ld, y, epilogue).run(this->device, plan);
      } else {
        return cudaErrorNotSupported;
      }
    };
    test::GemmFixture<Types>::check(shape, kind, generator, gemm);
  }

  /// All rows of W alike.
  void check(const test::Shape& shape, Kind kind, wgmma_cut cut, std::mt19937& generator) {
    check(shape, kind, wgmma_plan{cut, shape.n, {}}, generator);
  }

  static constexpr bool kQuantized = detail::is_quantized_v<Element>;
  const std::vector<wgmma_tile> tiles = tiles_for<Element>();
  bool early_weights = false;
};
using Combinations = ::testing::Types<
    std::tuple<__half, std::int8_t, __half>, std::tuple<__nv_bfloat16, std::int8_t, float>,
    std::tuple<__half, __half, float>, std::tuple<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>>;
TYPED_TEST_SUITE(WgmmaGemmTest, Combinations);

// Rows must start on 16-byte boundaries: K and the pads are chosen so that both operands' do.
TYPED_TEST(WgmmaGemmTest, EveryTileWithTailsInEveryDimension) {
  std::mt19937 generator(21);
  int i = 0;
  for (wgmma_tile tile : this->tiles) {
    const wgmma_cut cut{tile, 1};
    this->check({300, 205, 1000, 24, 24, 0}, kKinds[i++ % 2], cut, generator);
    this->check({17, 130, 72, 8, 8, 1}, kKinds[i++ % 2], cut, generator);
    this->check({129, 400, 336, 0, 0, 2}, kKinds[i++ % 2], cut, generator);
    this->check({90, 264, 16, 0, 0, 0}, kKinds[i++ % 2], cut, generator);
    this->check({1, 1, 16, 0, 0, 0}, kKinds[i++ % 2], cut, generator);
  }
}

TYPED_TEST(WgmmaGemmTest, EveryNumberOfBlocksThatShareK) {
  std::mt19937 generator(22);
  int i = 0;
  for (wgmma_tile tile : this->tiles) {
    for (int splits = 2; splits <= detail::kWgmmaMaxSplits; ++splits) {
      const int m = test::random_int(1, 290, generator), n = test::random_int(1, 300, generator);
      this->check({m, n, 1104, 16, 16, 1}, kKinds[i++ % 2], wgmma_cut{tile, splits}, generator);
    }
    this->check({265, 136, 256, 0, 0, 0}, Kind::bias, wgmma_cut{tile, 2}, generator);
    // Fewer stages than blocks.
    this->check({70, 136, 144, 0, 0, 0}, Kind::residual, wgmma_cut{tile, 8}, generator);
  }
}

TYPED_TEST(WgmmaGemmTest, PersistentBlocksTakeManyTiles) {
  std::mt19937 generator(23);
  for (int blocks : {1, 6}) {
    this->device.sm_count = blocks;
    for (wgmma_tile tile : this->tiles) {
      this->early_weights = !this->early_weights;
      // Rows of Y that TMA can store, and rows that it cannot.
      this->check({540, 520, 144, 0, 0, 0}, Kind::bias, wgmma_cut{tile, 1}, generator);
      this->check({100, 300, 1104, 0, 0, 1}, Kind::residual, wgmma_cut{tile, 1}, generator);
    }
  }
}

// One stage of K to a tile: a block has the next tile's values while the copy engine may still read
// those of the tile before, of as many tokens or of a few.
TYPED_TEST(WgmmaGemmTest, StagingIsReusedOnceItHasBeenRead) {
  std::mt19937 generator(26);
  this->device.sm_count = 3;  // each block takes tiles of both kinds
  for (wgmma_tile tile : this->tiles) {
    const int tokens = detail::wgmma_policy_of(tile).tokens;
    this->check({tokens, 4096, 16, 0, 0, 0}, Kind::bias, wgmma_cut{tile, 1}, generator);
    this->check({tokens + 9, 2048, 16, 0, 0, 0}, Kind::bias, wgmma_cut{tile, 1}, generator);
  }
}

// Rows start on 16-byte boundaries and end between two: the copy engine moves whole 16 bytes.
TYPED_TEST(WgmmaGemmTest, NothingIsWrittenBehindRowsThatEndBetweenBoundaries) {
  std::mt19937 generator(28);
  int i = 0;
  for (wgmma_tile tile : this->tiles) {
    for (int n : {15, 205, 451}) {
      const wgmma_cut cut{tile, 1 + i % 3};
      this->check({20, n, 1104, 16, 16, 8 - n % 8}, kKinds[i++ % 2], cut, generator);
    }
    this->check({20, 46, 144, 16, 16, 2}, kKinds[i++ % 2], wgmma_cut{tile, 1}, generator);
  }
}

TYPED_TEST(WgmmaGemmTest, ASecondLaunchComputesTheRowsThatAreLeft) {
  std::mt19937 generator(25);
  int i = 0;
  for (wgmma_tile tile : this->tiles) {
    const wgmma_cut large{wgmma_tile::rows128_tokens256, 1};
    for (int splits : {1, 3}) {
      this->check({270, 520, 464, 0, 0, 0}, kKinds[i++ % 2], wgmma_plan{large, 256, {tile, splits}},
                  generator);
      this->check({150, 600, 464, 0, 0, 1}, kKinds[i++ % 2],
                  wgmma_plan{{tile, 1}, 384, {wgmma_tile::rows192_tokens128, splits}}, generator);
    }
  }
}

// At most 32 tokens have tiles of their own with INT8 weights.
TYPED_TEST(WgmmaGemmTest, FewTokens) {
  if (!this->kQuantized) GTEST_SKIP();
  std::mt19937 generator(27);
  int i = 0;
  for (int m : {1, 8, 9, 15, 16, 17, 24, 31, 32}) {
    for (int k : {16, 112, 144, 656, 2576}) {
      const int n = test::random_int(1, 500, generator);
      const wgmma_plan plan = detail::default_wgmma_selector{}(this->device, m, n, k, true);
      EXPECT_TRUE(detail::wgmma_policy_of(plan.first.tile).mma());
      this->early_weights = !this->early_weights;
      this->check({m, n, k, 16, 16, i % 3}, kKinds[i % 2], plan, generator);
      ++i;
    }
  }
}

// The fastest cuts of all that fit on H200's 132 SMs, but for 1 %, as they were measured: what the
// selector's model of time was made from, and must still say.
TEST(WgmmaSelector, TakesTheFastestCutsOfFewTokens) {
  struct measured {
    int n, k;
    wgmma_cut of16, of32;  // tokens at most
  };
  constexpr measured kMeasured[] = {
      {7680, 2560, {wgmma_tile::rows64_tokens16, 2}, {wgmma_tile::rows64_tokens32, 2}},
      {2560, 2560, {wgmma_tile::rows64_tokens16, 2}, {wgmma_tile::rows48_tokens32, 2}},
      {10240, 2560, {wgmma_tile::rows192_tokens16, 2}, {wgmma_tile::rows48_tokens32, 1}},
      {2560, 10240, {wgmma_tile::rows64_tokens16, 5}, {wgmma_tile::rows48_tokens32, 4}},
      {17920, 2560, {wgmma_tile::rows144_tokens16, 1}, {wgmma_tile::rows144_tokens32, 1}},
      {50304, 2560, {wgmma_tile::rows192_tokens16, 1}, {wgmma_tile::rows64_tokens32, 1}},
      {4096, 4096, {wgmma_tile::rows64_tokens16, 2}, {wgmma_tile::rows48_tokens32, 2}},
      {16384, 4096, {wgmma_tile::rows64_tokens16, 1}, {wgmma_tile::rows64_tokens32, 1}},
      {4096, 16384, {wgmma_tile::rows64_tokens16, 3}, {wgmma_tile::rows144_tokens32, 4}}};
  waterweight::device_info device{};
  device.sm_count = 132;
  device.compute_capability = 90;
  for (const measured& shape : kMeasured) {
    for (int m : {2, 9, 12, 16, 17, 24, 32}) {
      SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(shape.n) + " x " +
                   std::to_string(shape.k));
      const wgmma_cut fastest = m <= 16 ? shape.of16 : shape.of32;
      const wgmma_plan plan = detail::default_wgmma_selector{}(device, m, shape.n, shape.k, true);
      EXPECT_EQ(plan.first.tile, fastest.tile);
      EXPECT_EQ(plan.first.splits, fastest.splits);
      EXPECT_EQ(plan.rows, shape.n);
    }
  }
}

// Likewise, of more tokens: the fastest of the cuts of tiles of 64.
TEST(WgmmaSelector, TakesTheFastestCutsOf33To64Tokens) {
  struct measured {
    int n, k;
    wgmma_cut fastest;
  };
  constexpr measured kMeasured[] = {{7680, 2560, {wgmma_tile::rows128_tokens64, 2}},
                                    {2560, 2560, {wgmma_tile::rows128_tokens64, 4}},
                                    {10240, 2560, {wgmma_tile::rows192_tokens64, 2}},
                                    {2560, 10240, {wgmma_tile::rows128_tokens64, 5}},
                                    {17920, 2560, {wgmma_tile::rows192_tokens64, 1}},
                                    {50304, 2560, {wgmma_tile::rows192_tokens64, 1}}};
  waterweight::device_info device{};
  device.sm_count = 132;
  device.compute_capability = 90;
  for (const measured& shape : kMeasured) {
    for (int m : {48, 64}) {
      const wgmma_plan plan = detail::default_wgmma_selector{}(device, m, shape.n, shape.k, true);
      EXPECT_EQ(plan.first.tile, shape.fastest.tile) << m << " x " << shape.n << " x " << shape.k;
      EXPECT_EQ(plan.first.splits, shape.fastest.splits)
          << m << " x " << shape.n << " x " << shape.k;
    }
  }
}

// Up to 16 tokens have other kernels too, which are faster for some shapes.
TEST(WgmmaSelector, IsAskedWhereTheKernelIsTheFasterOneForFewTokens) {
  struct measured {
    int n, k;
    bool of4, of8, of16;
  };
  constexpr measured kMeasured[] = {
      {7680, 2560, false, false, true},  {2560, 2560, false, false, true},
      {10240, 2560, false, false, true}, {17920, 2560, false, false, true},
      {50304, 2560, false, false, true}, {16384, 4096, false, false, true},
      {2560, 10240, false, false, true}, {4096, 16384, true, true, true},
      {2560, 12288, false, true, true},  {512, 2560, false, false, false}};
  waterweight::device_info device{};
  device.sm_count = 132;
  device.compute_capability = 90;
  for (const measured& shape : kMeasured) {
    for (int m : {4, 8, 9, 16}) {
      using launcher =
          detail::gemm_launcher<__half, std::int8_t, __half, waterweight::identity_epilogue>;
      const launcher gemm{{nullptr, m, shape.k, shape.k},
                          {nullptr, nullptr, shape.n, shape.k, shape.k},
                          {nullptr, m, shape.n, shape.n},
                          {},
                          {},
                          nullptr,
                          {}};
      EXPECT_EQ(gemm.prefers_wgmma(device), m <= 4   ? shape.of4
                                            : m <= 8 ? shape.of8
                                                     : shape.of16)
          << m << " x " << shape.n << " x " << shape.k;
    }
  }
}

// 16-bit weights have wgmma's tiles for any number of tokens, INT8 weights only for more than 32.
TEST(WgmmaSelector, TakesTilesThatTakeTheWeights) {
  waterweight::device_info device{};
  device.sm_count = 132;
  device.compute_capability = 90;
  for (int n : {64, 2560, 17920, 50304}) {
    for (int m : {1, 16, 17, 32, 33, 96, 300}) {
      for (bool quantized : {false, true}) {
        const wgmma_plan plan = detail::default_wgmma_selector{}(device, m, n, 2560, quantized);
        const auto policy = detail::wgmma_policy_of(plan.first.tile);
        EXPECT_TRUE(policy.takes(quantized)) << m << " " << n;
        EXPECT_EQ(policy.mma(), quantized && m <= 32) << m << " " << n;
      }
    }
  }
}

TYPED_TEST(WgmmaGemmTest, TheSelectorsPlansAreRight) {
  std::mt19937 generator(24);
  int i = 0;
  for (int m : {17, 64, 65, 128, 200, 256, 300}) {
    for (int k : {16, 128, 656}) {
      const wgmma_plan plan =
          detail::default_wgmma_selector{}(this->device, m, 333, k, this->kQuantized);
      this->check({m, 333, k, 0, 0, 0}, kKinds[i++ % 2], plan, generator);
    }
  }
  // Few SMs: rounds of tiles and what is left.
  this->device.sm_count = 12;
  const wgmma_plan plan =
      detail::default_wgmma_selector{}(this->device, 520, 1000, 512, this->kQuantized);
  this->check({520, 1000, 512, 0, 0, 0}, Kind::bias, plan, generator);
}

}  // namespace
