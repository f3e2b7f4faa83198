// Every tile of the wgmma GEMM, with every number of blocks sharing K, against the fp64 reference.
// Needs a device of compute capability 9.0 and code built for sm_90a.
#include <waterweight/detail/gemm/wgmma_launch.cuh>
#include <waterweight/detail/gemm/wgmma_selector.cuh>

#include "tests/gemm/gemm_fixture.cuh"

namespace {

namespace detail = waterweight::detail;
using detail::wgmma_plan;
using detail::wgmma_tile;
using waterweight::matrix_view;

constexpr wgmma_tile kTiles[] = {wgmma_tile::rows128_tokens64,  wgmma_tile::rows192_tokens64,
                                 wgmma_tile::rows128_tokens128, wgmma_tile::rows192_tokens128,
                                 wgmma_tile::rows128_tokens176, wgmma_tile::rows128_tokens256};
static_assert(std::size(kTiles) == detail::kWgmmaTiles);

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
                               waterweight::identity_epilogue{});
    if (this->device.compute_capability != 90 || !launcher.present()) {
      GTEST_SKIP() << "no sm_90a code runs here";
    }
  }

  template <class Epilogue>
  auto make(matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
            matrix_view<Out> y, const Epilogue& epilogue) {
    const detail::weight_operand<Element> operand{w, scale, static_cast<int>(y.cols),
                                                  static_cast<int>(x.cols), w_ld};
    return detail::wgmma_launcher<T, Element, Out, Epilogue>{
        x, operand, y, epilogue, this->stream, early_weights};
  }

  void check(const test::Shape& shape, test::Kind kind, wgmma_plan plan, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message()
                 << "tile " << static_cast<int>(plan.tile) << " splits " << plan.splits);
    const auto gemm = [&](matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
                          matrix_view<Out> y, const auto& epilogue) {
      return make(x, w, scale, w_ld, y, epilogue).run(this->device, plan);
    };
    test::GemmFixture<Types>::check(shape, kind, generator, gemm);
  }

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
  for (wgmma_tile tile : kTiles) {
    this->check({300, 205, 1000, 24, 24, 0}, static_cast<test::Kind>(i++ % 5), {tile, 1},
                generator);
    this->check({17, 130, 72, 8, 8, 1}, static_cast<test::Kind>(i++ % 5), {tile, 1}, generator);
    this->check({129, 400, 336, 0, 0, 2}, static_cast<test::Kind>(i++ % 5), {tile, 1}, generator);
    this->check({1, 1, 16, 0, 0, 0}, static_cast<test::Kind>(i++ % 5), {tile, 1}, generator);
  }
}

TYPED_TEST(WgmmaGemmTest, EveryNumberOfBlocksThatShareK) {
  std::mt19937 generator(22);
  int i = 0;
  for (wgmma_tile tile : kTiles) {
    for (int splits = 2; splits <= detail::kWgmmaMaxSplits; ++splits) {
      const int m = test::random_int(1, 290, generator), n = test::random_int(1, 300, generator);
      this->check({m, n, 1104, 16, 16, 1}, static_cast<test::Kind>(i++ % 5), {tile, splits},
                  generator);
    }
    // As many parts as there are stages; fewer stages than parts.
    this->check({70, 136, 256, 0, 0, 0}, test::Kind::bias, {tile, 2}, generator);
    this->check({70, 136, 144, 0, 0, 0}, test::Kind::residual, {tile, 8}, generator);
  }
}

TYPED_TEST(WgmmaGemmTest, PersistentBlocksTakeManyTiles) {
  std::mt19937 generator(23);
  for (int blocks : {1, 2, 6, 14}) {
    this->device.sm_count = blocks;
    for (wgmma_tile tile : kTiles) {
      this->early_weights = !this->early_weights;
      // Rows of Y that TMA can store, and rows that it cannot.
      this->check({700, 904, 208, 0, 0, 0}, test::Kind::bias, {tile, 1}, generator);
      this->check({100, 300, 1104, 0, 0, 1}, test::Kind::residual, {tile, 1}, generator);
    }
  }
}

TYPED_TEST(WgmmaGemmTest, TheSelectorsPlansAreRight) {
  std::mt19937 generator(24);
  for (int m : {17, 64, 65, 128, 200, 256, 300}) {
    for (int k : {16, 128, 656}) {
      const wgmma_plan plan = detail::default_wgmma_selector{}(this->device, m, 333, k);
      this->check({m, 333, k, 0, 0, 0}, test::Kind::gelu_tanh, plan, generator);
    }
  }
}

}  // namespace
