// Every tile of the mma.sync GEMM against the fp64 reference, whatever the selector would choose.
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

  /// `run` launches: a member of tiled_launcher, called on one.
  template <class Run>
  void check(const test::Shape& shape, test::Kind kind, std::mt19937& generator, const Run& run) {
    const auto gemm = [&](matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
                          matrix_view<Out> y, const auto& epilogue) {
      const detail::weight_operand<Element> operand{w, scale, static_cast<int>(y.cols),
                                                    static_cast<int>(x.cols), w_ld};
      using Epilogue = std::decay_t<decltype(epilogue)>;
      return run(
          detail::tiled_launcher<T, Element, Out, Epilogue>{x, operand, y, epilogue, this->stream});
    };
    test::GemmFixture<Types>::check(shape, kind, generator, gemm);
  }

  /// Rows start on 16-byte boundaries: K and the pads must see to it.
  void check(const test::Shape& shape, test::Kind kind, tiled_plan plan, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message()
                 << "tile " << static_cast<int>(plan.tile) << (plan.shared ? " shared" : ""));
    if (detail::tiled_policy_of(plan.tile, sizeof(Element)).shared_bytes(sizeof(Element)) >
        this->device.max_shared_bytes) {
      return;
    }
    check(shape, kind, generator,
          [&](const auto& launcher) { return launcher.run(this->device, plan); });
  }

  static test::Kind kind(int i) { return i % 2 == 0 ? test::Kind::bias : test::Kind::residual; }
};
using Combinations = ::testing::Types<
    std::tuple<__half, std::int8_t, __half>, std::tuple<__nv_bfloat16, std::int8_t, float>,
    std::tuple<__half, __half, float>, std::tuple<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>>;
TYPED_TEST_SUITE(TiledGemmTest, Combinations);

TYPED_TEST(TiledGemmTest, EveryTileWithTailsInEveryDimension) {
  std::mt19937 generator(31);
  int i = 0;
  for (tiled_tile tile : kTiles) {
    this->check({150, 405, 200, 24, 24, 0}, this->kind(i++), {tile, false}, generator);
    this->check({17, 130, 72, 8, 8, 1}, this->kind(i++), {tile, false}, generator);
    this->check({129, 400, 336, 0, 0, 8}, this->kind(i++), {tile, false}, generator);
    this->check({1, 1, 16, 0, 0, 0}, this->kind(i++), {tile, false}, generator);
  }
}

TYPED_TEST(TiledGemmTest, EveryLengthOfTheLastStepOfK) {
  std::mt19937 generator(32);
  int i = 0;
  for (int k = 1; k <= 130; k += 7) {
    const int pad = (16 - k % 16) % 16;
    this->check({70, 40, k, pad, pad, 2}, this->kind(i), {kTiles[i % 3], false}, generator);
    ++i;
  }
}

TYPED_TEST(TiledGemmTest, MoreTilesOfRowsThanAGroupHas) {
  std::mt19937 generator(33);
  for (tiled_tile tile : kTiles) {
    this->check({2100, 70, 32, 0, 0, 0}, test::Kind::bias, {tile, false}, generator);
  }
}

TYPED_TEST(TiledGemmTest, PersistentBlocksTakeManyTilesAndShareTheLast) {
  std::mt19937 generator(35);
  // Few blocks have whole tiles, shared ones, and tiles of which three blocks and more have a part.
  for (int blocks : {1, 2, 5, 14}) {
    this->device.sm_count = blocks;
    for (bool shared : {false, true}) {
      this->check({300, 600, 208, 0, 0, 0}, test::Kind::bias, {tiled_tile::m128_n256, shared},
                  generator);
      this->check({100, 300, 1104, 0, 0, 1}, test::Kind::residual, {tiled_tile::m128_n256, shared},
                  generator);
    }
  }
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
    this->check(shape, this->kind(i++), generator,
                [](const auto& launcher) { return launcher.run_unaligned(); });
  }
}

}  // namespace
