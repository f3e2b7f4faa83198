// What H2O adds to attention: one decoded token per layer with bookkeeping (scores, eviction) and
// without, and a prompt with column sums and without.
//
//   attention/decode/<fp16|bf16>/batch:<sequences>/heads:32/slots:505/head_dim:80
//   attention/prefill/<fp16|bf16>/tokens:<prompt>/heads:32/head_dim:80
#include <string>
#include <type_traits>

#include "bench/decode_problem.cuh"
#include "bench/harness/chain.hpp"
#include "bench/prefill_problem.cuh"

namespace {

using bench::Chain;
using bench::Session;
using bench::Statistics;

// Pythia-2.8B.
constexpr int kLayers = 32, kHeads = 32, kHeadDim = 80;
constexpr waterweight::h2o_policy kBudget{4, 248, 252};
constexpr int kSlots = kBudget.capacity();
constexpr int kTokens = 3;  // of one chain

/// kTokens tokens through all layers, each layer with a cache of its own; one operation per layer
/// and token. The one h2o_advance per token is timed with them, as every token needs it.
template <class T>
Chain decode_chain(const Session& session, const bench::DecodeProblem<T>& problem,
                   Chain::Before before) {
  const auto launch = [&](int i) {
    const cudaError_t status = problem.decode(session, i % kLayers);
    const bool last = i % kLayers == kLayers - 1;
    return status == cudaSuccess && last ? problem.advance(session) : status;
  };
  return Chain(session.stream, kTokens * kLayers, launch, std::move(before));
}

template <class T>
void decode(benchmark::State& state, const Session& session, int batch) {
  // Plain attention fills its caches up: from one slot fewer than the scored side has to one more,
  // so that both read kSlots slots on average; then back to the start.
  const bench::DecodeProblem<T> plain(
      session, {kLayers, batch, kHeads, kSlots + kTokens - 1, kHeadDim, kSlots - 2,
                waterweight::h2o_policy{}, false});
  const bench::DecodeProblem<T> scored(
      session, {kLayers, batch, kHeads, kSlots, kHeadDim, kSlots - 1, kBudget, true});
  plain.verify(session);
  scored.verify(session);
  const Chain plain_chain = decode_chain(session, plain, [&] { plain.reset(session); });
  const Chain scored_chain = decode_chain(session, scored, {});
  const auto times = bench::measure({&scored_chain, &plain_chain});

  // Keys and values once; with bookkeeping also every score in and out and every position in.
  const double slots = static_cast<double>(batch) * kHeads * kSlots;
  const double plain_bytes = slots * 2 * kHeadDim * sizeof(T);
  const bench::Work work{plain_bytes + slots * 12, slots * 4 * kHeadDim};
  bench::report(state, times[0], work, session.roofs.read(), session.roofs.matrix);
  const double plain_rate = plain_bytes / times[1].median;
  state.counters["plain_us"] = 1e6 * times[1].median;
  state.counters["plain_bytes_per_s"] = plain_rate;
  state.counters["plain_memory_roof_percent"] = 100 * plain_rate / session.roofs.read();
  state.counters["bookkeeping_percent"] = 100 * (times[0].median / times[1].median - 1);
}

template <class T>
void prefill(benchmark::State& state, const Session& session, int tokens) {
  const bench::PrefillProblem<T> problem(session, tokens, kHeads, kHeadDim);
  problem.verify(session);
  const auto chain = [&](bool with_column_sums) {
    return bench::rotating_chain(session.stream, problem.copies(), [&, with_column_sums](int i) {
      return problem.run(session, i, with_column_sums);
    });
  };
  const Chain forward = chain(false), both = chain(true);
  const auto times = bench::measure({&forward, &both});
  const double vectors = static_cast<double>(tokens) * kHeads;
  const bench::Work work{4 * vectors * kHeadDim * sizeof(T), 2 * vectors * tokens * kHeadDim};
  bench::report(state, times[0], work, session.roofs.read(), session.roofs.matrix);
  state.counters["with_column_sums_us"] = 1e6 * times[1].median;
  state.counters["column_pass_us"] = 1e6 * (times[1].median - times[0].median);
  state.counters["column_pass_per_forward"] = times[1].median / times[0].median - 1;
}

template <class T>
void add_series(const Session& session) {
  const std::string type = std::is_same_v<T, __half> ? "fp16" : "bf16";
  const std::string dim = "/head_dim:" + std::to_string(kHeadDim);
  const std::string heads = "/heads:" + std::to_string(kHeads);
  for (const int batch : {1, 16, 64}) {
    bench::add_benchmark("attention/decode/" + type + "/batch:" + std::to_string(batch) + heads +
                             "/slots:" + std::to_string(kSlots) + dim,
                         [&session, batch](auto& state) { decode<T>(state, session, batch); });
  }
  for (const int tokens : {512, 2048, 8192}) {
    bench::add_benchmark(
        "attention/prefill/" + type + "/tokens:" + std::to_string(tokens) + heads + dim,
        [&session, tokens](auto& state) { prefill<T>(state, session, tokens); });
  }
}

}  // namespace

int main(int argc, char** argv) {
  return bench::run(argc, argv, [](Session& session) {
    add_series<__half>(session);
    add_series<__nv_bfloat16>(session);
  });
}
