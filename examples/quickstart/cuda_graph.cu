// One decode step captured as a CUDA Graph and replayed: position and length live on the device.
#include <waterweight/attention.cuh>
#include <waterweight/device_info.cuh>
#include <waterweight/h2o.cuh>

#include <cstdio>

#include "quickstart.cuh"

namespace ww = waterweight;
using namespace quickstart;

int main() {
  if (!has_gpu()) return skipped;
  const int heads = 4, head_dim = 64, steps = 50, row = heads * head_dim;
  const ww::h2o_policy budget{0, 8, 8};
  const int slots = budget.capacity();

  device_buffer<__half> q(random_halves(row, 1, 1.0f)), k(random_halves(row, 2, 1.0f));
  device_buffer<__half> v(random_halves(row, 3, 1.0f)), out(row);
  device_buffer<__half> cache_k(slots * row), cache_v(slots * row);
  device_buffer<float> score(heads * slots);
  device_buffer<std::int32_t> free_slot(heads), step(1), length(1);
  device_buffer<std::int32_t> position(std::vector<std::int32_t>(heads * slots, -1));  // all empty
  const ww::kv_cache_view<__half> cache{cache_k.get(), cache_v.get(), 1, heads, slots, head_dim};
  const ww::h2o_state_view state{score.get(), position.get(), free_slot.get(), step.get(),
                                 length.get()};
  const auto token = [&](const device_buffer<__half>& buffer) {
    return ww::heads_view<__half>{buffer.get(), 1, 1, heads, head_dim, row, row, head_dim};
  };
  const std::size_t scratch_bytes = ww::h2o_decode_workspace_bytes(1, heads, slots, head_dim);
  device_buffer<std::byte> scratch(scratch_bytes);

  ww::device_info device;
  check(ww::query_device(&device, 0));
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  check(ww::h2o_decode_attention(device, token(q), token(k), token(v), ww::rotary_view{}, cache,
                                 state, budget, token(out), {scratch.get(), scratch_bytes},
                                 stream));
  check(ww::h2o_advance(state, 1, slots, budget, stream));
  check(cudaStreamEndCapture(stream, &graph));

  // Nothing about the graph changes from token to token, not even when the cache becomes full.
  cudaGraphExec_t replay;
  check(cudaGraphInstantiate(&replay, graph, 0));
  for (int i = 0; i < steps; ++i) check(cudaGraphLaunch(replay, stream));
  check(cudaStreamSynchronize(stream));

  const int next = step.download()[0], live = length.download()[0];
  std::printf("after %d replays: next position %d, %d tokens in the cache\n", steps, next, live);
  check(cudaGraphExecDestroy(replay));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
  return next == steps && live == slots - 1 ? 0 : 1;
}
