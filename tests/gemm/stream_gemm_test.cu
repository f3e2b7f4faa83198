// The streaming kernel for few tokens, with every size of cluster, against the fp64 reference, and
// in chains in which each product starts before the one before it has ended. Needs code built for
// sm_90 or newer and a device that runs it.
#include <waterweight/detail/gemm/stream_launch.cuh>

#include "tests/gemm/gemm_fixture.cuh"

namespace {

namespace detail = waterweight::detail;
using waterweight::early_read;
using waterweight::int8_weight_view;
using waterweight::matrix_view;

template <class Types>
class StreamGemmTest : public test::GemmFixture<Types> {
 protected:
  using typename test::GemmFixture<Types>::T;
  using typename test::GemmFixture<Types>::Element;
  using typename test::GemmFixture<Types>::Out;

  void SetUp() override {
    test::GemmFixture<Types>::SetUp();
    if (this->IsSkipped() || this->HasFatalFailure()) return;
    if (!detail::may_stream(this->device) ||
        !detail::stream_launcher<T, Element, Out, waterweight::identity_epilogue>::present()) {
      GTEST_SKIP() << "no code with Hopper's barriers runs here";
    }
  }

  /// Fails if K is too long for a plan.
  void check(const test::Shape& shape, test::Kind kind, int least_cluster, bool early,
             std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message() << "cluster of " << least_cluster << " early " << early);
    const auto gemm = [&](matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
                          matrix_view<Out> y, const auto& epilogue) {
      const detail::weight_operand<Element> operand{w, scale, static_cast<int>(y.cols),
                                                    static_cast<int>(x.cols), w_ld};
      using Epilogue = std::decay_t<decltype(epilogue)>;
      const detail::stream_launcher<T, Element, Out, Epilogue> launcher{
          x, operand, y, epilogue, this->stream, early};
      const auto run = [&](auto n_tiles) {
        const detail::stream_plan plan =
            detail::make_stream_plan(this->device.sm_count, x.rows, operand.rows, operand.cols,
                                     operand.ld, sizeof(Element), least_cluster);
        if (plan.clusters == 0) return cudaErrorInvalidValue;
        return launcher.template run<n_tiles>(plan);
      };
      return detail::stream_n_tiles(x.rows) == 1 ? run(std::integral_constant<int, 1>{})
                                                 : run(std::integral_constant<int, 2>{});
    };
    test::GemmFixture<Types>::check(shape, kind, generator, gemm);
  }
};
using Combinations = ::testing::Types<
    std::tuple<__half, std::int8_t, __half>, std::tuple<__half, std::int8_t, float>,
    std::tuple<__nv_bfloat16, std::int8_t, __nv_bfloat16>, std::tuple<__half, __half, __half>,
    std::tuple<__nv_bfloat16, __nv_bfloat16, float>>;
TYPED_TEST_SUITE(StreamGemmTest, Combinations);

TYPED_TEST(StreamGemmTest, EverySizeOfClusterWithTailsInEveryDimension) {
  std::mt19937 generator(31);
  int i = 0;
  for (int cluster = 1; cluster <= detail::kStreamMaxCluster; ++cluster) {
    const int m = 1 + i * 5 % 16;
    this->check({m, 333, 1296, 16, 16, 3}, static_cast<test::Kind>(i % 5), cluster, i % 2 == 0,
                generator);
    this->check({16 - i, 61, 128 * cluster + 16, 0, 0, 0}, static_cast<test::Kind>((i + 1) % 5),
                cluster, i % 2 == 1, generator);
    ++i;
  }
}

TYPED_TEST(StreamGemmTest, SmallestProducts) {
  std::mt19937 generator(32);
  for (int m : {1, 16}) {
    this->check({m, 1, 16, 0, 0, 0}, test::Kind::identity, 1, true, generator);
    this->check({m, 5, 144, 0, 0, 1}, test::Kind::bias, 2, true, generator);
  }
}

TYPED_TEST(StreamGemmTest, BlocksWithManyGroupsOfRows) {
  std::mt19937 generator(33);
  this->device.sm_count = 8;
  for (int m : {1, 8, 9, 16}) {
    for (int cluster : {1, 2, 4, 8}) {
      this->check({m, 1501, 544, 0, 0, 0}, test::Kind::residual, cluster, true, generator);
    }
  }
}

// Slabs that fill K come as boxes of a tensor map, a row of them in one piece or several.
TYPED_TEST(StreamGemmTest, SlabsThatFillK) {
  std::mt19937 generator(37);
  this->device.sm_count = 24;
  for (int m : {1, 5, 8, 16}) {
    for (int cluster : {2, 4, 8}) {
      this->check({m, 333, 1024, 16, 16, 3}, test::Kind::residual, cluster, true, generator);
    }
    this->check({m, 173, 5120, 0, 0, 0}, test::Kind::bias, 2, m == 5, generator);
    this->check({m, 6, 10240, 0, 0, 0}, test::Kind::identity, 4, m == 8, generator);
  }
}

// Rows too long for a block's warps, taken as several rows of a matrix with as many more rows.
TYPED_TEST(StreamGemmTest, RowsTakenInParts) {
  std::mt19937 generator(38);
  const int all = this->device.sm_count;
  int i = 0;
  for (int sms : {4, all}) {
    this->device.sm_count = sms;
    for (int k : {5120, 3072, 10240, 8192, 10240 - 256}) {
      for (int m : {1, 2, 3, 4}) {
        this->check({m, (sms == 4 ? 93 : 43) + i % 3, k, 16 * (i % 2), 0, 3},
                    static_cast<test::Kind>(i % 5), 1, i % 4 < 2, generator);
        ++i;
      }
    }
  }
  this->check({1, 1, 10240, 0, 0, 0}, test::Kind::identity, 1, true, generator);
}

// Rows so long that less than the ring is filled before activations are there, with as many chunks
// to a warp as it can have, and one less.
TYPED_TEST(StreamGemmTest, BlocksWithMoreTilesThanTheRing) {
  std::mt19937 generator(36);
  this->device.sm_count = 2;
  for (int m : {1, 4, 5, 8, 16}) {
    for (int n : {89, 173}) {
      this->check({m, n, 2560, 0, 0, 0}, test::Kind::bias, 1, true, generator);
      this->check({m, n, 2544, 16, 0, 0}, test::Kind::residual, 1, false, generator);
      this->check({m, n, 2048, 0, 0, 0}, test::Kind::identity, 1, true, generator);
    }
  }
}

TEST(StreamPlan, FillsPartOfTheRingFirstWhereMoreTilesFollow) {
  const auto plan = [](int m, int n, int k) {
    return detail::make_stream_plan(132, m, n, k, k, sizeof(std::int8_t));
  };
  for (int n : {7680, 10240, 17920, 50304}) {
    for (int m : {1, 2, 4, 5, 8}) {
      SCOPED_TRACE(::testing::Message() << "M " << m << " N " << n);
      EXPECT_EQ(plan(m, n, 2560).first, m == 1 ? 6 : 4);
      const bool fewer = n == 7680 || (n == 10240 && m > 2) || (n == 17920 && m > 4);
      EXPECT_EQ(plan(m, n, 2560).look_ahead, fewer ? 4 : 8);
      EXPECT_GT(plan(m, n, 2560).slots, 8);
      EXPECT_TRUE(plan(m, n, 2560).whole_rows);
    }
    EXPECT_EQ(plan(16, n, 2560).slots, plan(16, n, 2560).first);
  }
  for (int m : {1, 2, 4, 8}) {
    const auto shortest = plan(m, 8192, 2048);
    EXPECT_EQ(shortest.first, 8) << "M " << m;
    EXPECT_EQ(shortest.look_ahead, 2) << "M " << m;
  }
  for (int m : {1, 3, 4, 8}) {
    const auto small = plan(m, 2560, 2560);
    EXPECT_EQ(small.slots, small.first) << "all in the ring";
    EXPECT_EQ(small.left, detail::kStreamAtOnce);
    EXPECT_EQ(small.whole_rows, m < 4) << "M " << m;
    if (m <= 2) EXPECT_EQ(plan(m, 2560, 10240).first, plan(4 * m, 10240, 2560).first) << "parts";
  }
}

TEST(StreamPlan, ShortBlocksAreFollowedAtOnceOthersWithFewTilesLeft) {
  for (int tiles = 1; tiles <= 70; ++tiles) {
    SCOPED_TRACE(::testing::Message() << tiles << " tiles");
    const auto plan = [&](int m) {
      return detail::make_stream_plan(132, m, 132 * detail::kStreamTile * tiles, 2560, 2560,
                                      sizeof(std::int8_t));
    };
    const int left = tiles < 64 ? 6 : 8;
    EXPECT_EQ(plan(4).left, tiles <= 12 ? detail::kStreamAtOnce : left);
    EXPECT_EQ(plan(8).left, tiles <= plan(8).slots ? detail::kStreamAtOnce : left);
  }
}

// As a product with as many more tokens and rows would be, where those tokens are at most eight.
TEST(StreamPlan, TakesLongRowsInParts) {
  const auto plan = [](int m, int n, int k) {
    return detail::make_stream_plan(132, m, n, k, k, sizeof(std::int8_t));
  };
  for (int k : {2560, 4096, 5120, 8192, 10240, 20480, 3072, 3072 + 64, 10240 + 256}) {
    const int fold = k <= 2560 ? 0 : k <= 5120 ? 1 : 2;
    const bool fits = k >> fold <= 2560 && k % (64 << fold) == 0;
    for (int m : {1, 2, 3, 4, 5, 8, 16}) {
      SCOPED_TRACE(::testing::Message() << "M " << m << " K " << k);
      const auto long_rows = plan(m, 2560, k);
      const int expected = fits && m << fold <= 8 ? fold : 0;
      EXPECT_EQ(long_rows.fold, expected);
      if (expected > 0) {
        const auto parts = plan(m << fold, 2560 << fold, k >> fold);
        EXPECT_EQ(long_rows.rows(), detail::stream_rows::parts);
        EXPECT_EQ(parts.rows(), detail::stream_rows::whole);
        EXPECT_EQ(long_rows.clusters, parts.clusters);
        EXPECT_EQ(long_rows.tiles, parts.tiles);
        EXPECT_EQ(long_rows.first, parts.first);
        EXPECT_EQ(long_rows.left, parts.left);
        EXPECT_EQ(long_rows.whole_rows, parts.whole_rows);
      } else {
        EXPECT_EQ(long_rows.rows(),
                  k <= 2560 ? detail::stream_rows::whole : detail::stream_rows::slabs);
      }
    }
  }
  EXPECT_EQ(detail::make_stream_plan(132, 1, 2560, 10240, 10240, 2).fold, 0) << "16-bit weights";
  EXPECT_EQ(detail::make_stream_plan(132, 1, 2560, 10240, 10256, 1).fold, 0) << "rows apart";
  EXPECT_EQ(detail::make_stream_plan(132, 1, 2560, 10240, 10240, 1, 4).fold, 0) << "a cluster";
}

TEST(StreamPlan, LargeClustersAreFollowedWithFewerTilesLeft) {
  const auto left = [](int m, int n, int k) {
    return detail::make_stream_plan(132, m, n, k, k + 64, sizeof(std::int8_t)).left;
  };
  for (int m : {1, 4, 8}) {
    EXPECT_EQ(left(m, 2560, 10240 - 64), 5) << "four blocks split K, row by row, M " << m;
    EXPECT_EQ(left(m, 5120, 4096 - 64), 6) << "two blocks, M " << m;
  }
  EXPECT_EQ(left(4, 512, 10240), detail::kStreamAtOnce) << "few tiles";
}

TEST(StreamPlan, BlocksWithMoreBoxesThanTheRingReachAsFarAsTheyAreLong) {
  const auto plan = [](int m, int n, int k) {
    return detail::make_stream_plan(132, m, n, k, k + 64, sizeof(std::int8_t));
  };
  struct Case {
    int m, n, k, first, look_ahead, left;
  };
  for (const Case& c :
       {Case{1, 2048, 8192, 6, 4, 6}, Case{8, 4096, 4096, 6, 4, 6}, Case{1, 2560, 10240, 6, 4, 4},
        Case{6, 2560, 10240, 6, 4, 4}, Case{7, 2560, 10240, 5, 4, 8}, Case{8, 5120, 5120, 5, 4, 8},
        Case{1, 16384, 4096, 6, 8, 8}, Case{8, 16384, 4096, 6, 8, 8}}) {
    SCOPED_TRACE(::testing::Message() << "M " << c.m << " " << c.n << " x " << c.k);
    const auto boxes = plan(c.m, c.n, c.k);
    EXPECT_TRUE(boxes.boxes);
    EXPECT_EQ(boxes.first, c.first);
    EXPECT_EQ(boxes.look_ahead, c.look_ahead);
    EXPECT_EQ(boxes.left, c.left);
  }
  const auto few = plan(8, 512, 10240);
  EXPECT_TRUE(few.boxes);
  EXPECT_EQ(few.first, few.slots) << "all in the ring";
}

TEST(StreamPlan, CopiesBoxesWhereSlabsFillK) {
  const auto boxes = [](int k, int element_bytes) {
    return detail::make_stream_plan(132, 1, 2560, k, k + 64, element_bytes).boxes;
  };
  for (int k : {4096, 8192, 10240}) EXPECT_TRUE(boxes(k, 1)) << k;
  EXPECT_TRUE(boxes(10240, 2));
  EXPECT_FALSE(boxes(2560, 1)) << "K is not split";
  EXPECT_FALSE(boxes(4096 + 64, 1)) << "the last slab is shorter";
  EXPECT_FALSE(boxes(4096 + 16, 1)) << "nor does it end with a chunk";
  EXPECT_EQ(detail::tma_slab_pieces(2048), 1);
  EXPECT_EQ(detail::tma_slab_pieces(33 * detail::kStreamChunk), 2);
  EXPECT_EQ(detail::tma_slab_pieces(5120), 4) << "thirds are no multiple of 16";
  EXPECT_EQ(detail::tma_slab_pieces(2048 + 16), 3) << "of 688 bytes";
  EXPECT_EQ(detail::tma_slab_pieces(16 * 1009), 0) << "a prime";
}

TEST(StreamPlan, GivesWarpsTheirChunks) {
  for (int k : {2048, 2560, 4096, 8192, 10240}) {
    SCOPED_TRACE(k);
    const auto plan = detail::make_stream_plan(132, 1, 2560, k, k, sizeof(std::int8_t));
    EXPECT_EQ(plan.warps, detail::kStreamWarps);
    EXPECT_EQ(plan.warp_chunks,
              k % 2560 == 0 ? detail::stream_chunks(1) : detail::stream_fewer_chunks(1));
  }
}

TYPED_TEST(StreamGemmTest, LongestRows) {
  std::mt19937 generator(34);
  const int least = detail::kStreamWarps * detail::kStreamMaxCluster * detail::kStreamChunk /
                    static_cast<int>(sizeof(typename TestFixture::Element));
  const int longest = least * detail::stream_chunks(sizeof(typename TestFixture::Element));
  this->check({8, 40, longest, 0, 0, 0}, test::Kind::gelu_erf, 1, true, generator);
  this->check({16, 40, longest - 16, 0, 0, 0}, test::Kind::gelu_tanh, 1, true, generator);
}

// Each product reads what the one before it wrote, and adds to what that one read: both have been
// read in part by every SM and may be in its L1, as they were. Beside others another kernel
// multiplies.
TYPED_TEST(StreamGemmTest, ProductsInAChainWaitForEachOther) {
  using T = typename TestFixture::T;
  if constexpr (std::is_same_v<T, typename TestFixture::Out> &&
                std::is_same_v<std::int8_t, typename TestFixture::Element>) {
    std::mt19937 generator(35);
    constexpr int kSize = 1280, kLinks = 12;
    struct Chain {
      int m;
      bool beside_others;
    };
    for (const Chain& chain : {Chain{1, false}, Chain{4, false}, Chain{8, false}, Chain{16, false},
                               Chain{8, true}, Chain{16, true}}) {
      const int m = chain.m;
      SCOPED_TRACE(::testing::Message() << "M " << m << " beside others " << chain.beside_others);
      this->device.beside_others = chain.beside_others;
      const auto start = test::random_normal<T>(std::size_t(m) * kSize, 1.0f, generator);
      std::vector<std::int8_t> weights(std::size_t(kSize) * kSize);
      for (auto& value : weights) {
        value = static_cast<std::int8_t>(test::random_int(-127, 127, generator));
      }
      // Keeps the deviation of the values where it is.
      const std::vector<float> scales(kSize, 1.0f / 73.6f / std::sqrt(float(kSize)));
      test::DeviceBuffer<T> a(start), b(start);
      test::DeviceBuffer<std::int8_t> w(weights);
      test::DeviceBuffer<float> scale(scales);
      test::DeviceBuffer<T> bias(test::random_normal<T>(kSize, 1.0f, generator));
      const auto links = [&](bool apart) {
        for (int i = 0; i < kLinks; ++i) {
          auto& from = i % 2 == 0 ? a : b;
          auto& to = i % 2 == 0 ? b : a;
          const cudaError_t status = waterweight::w8a16_gemm(
              this->device, matrix_view<const T>{from.data(), m, kSize, kSize},
              int8_weight_view{w.data(), scale.data(), kSize, kSize, kSize},
              matrix_view<T>{to.data(), m, kSize, kSize},
              waterweight::bias_residual_epilogue<T, T>{bias.data(), to.data(), kSize},
              this->workspace(), this->stream, apart ? early_read::nothing : early_read::weights);
          if (status != cudaSuccess) return status;
          if (apart) EXPECT_CUDA(cudaStreamSynchronize(this->stream));
        }
        return cudaSuccess;
      };
      ASSERT_CUDA(links(true));
      const std::vector<T> expected = a.download();
      this->run_eager_and_captured(
          [&] {
            a.upload(start);
            b.upload(start);
          },
          [&] { return links(false); },
          [&](int) { EXPECT_TRUE(test::same_bits(expected, a.download())); });
    }
  }
}

}  // namespace
