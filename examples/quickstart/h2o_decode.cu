// A KV cache of fixed size: cut a long prompt to the budget, then decode with one eviction per
// step.
#include <waterweight/attention.cuh>
#include <waterweight/device_info.cuh>
#include <waterweight/h2o.cuh>

#include <algorithm>
#include <cstdio>

#include "quickstart.cuh"

namespace ww = waterweight;
using namespace quickstart;

int main() {
  if (!has_gpu()) return skipped;
  const int heads = 4, head_dim = 64, prompt = 100, steps = 30, row = heads * head_dim;
  const ww::h2o_policy budget{2, 16, 8};  // sinks, heavy hitters, recent tokens
  const int slots = budget.capacity();

  device_buffer<__half> q(random_halves(prompt * row, 1, 1.0f));
  device_buffer<__half> k(random_halves(prompt * row, 2, 1.0f));
  device_buffer<__half> v(random_halves(prompt * row, 3, 1.0f)), out(prompt * row);
  device_buffer<__half> cache_k(slots * row), cache_v(slots * row);
  device_buffer<float> lse(heads * prompt), column_sums(heads * prompt), score(heads * slots);
  device_buffer<std::int32_t> position(heads * slots), free_slot(heads), step(1), length(1);
  const ww::kv_cache_view<__half> cache{cache_k.get(), cache_v.get(), 1, heads, slots, head_dim};
  const ww::h2o_state_view state{score.get(), position.get(), free_slot.get(), step.get(),
                                 length.get()};
  const auto tokens = [&](const device_buffer<__half>& buffer, int first, int count) {
    return ww::heads_view<__half>{
        buffer.get() + first * row, 1, count, heads, head_dim, count * row, row, head_dim};
  };
  const std::size_t scratch_bytes = ww::h2o_decode_workspace_bytes(1, heads, slots, head_dim);
  device_buffer<std::byte> scratch(scratch_bytes);

  // Prefill: attention over the whole prompt, which also says how much attention each key received.
  ww::device_info device;
  check(ww::query_device(&device, 0));
  check(ww::h2o_prefill_attention(device, tokens(q, 0, prompt), tokens(k, 0, prompt),
                                  tokens(v, 0, prompt), nullptr, tokens(out, 0, prompt), lse.get(),
                                  column_sums.get(), nullptr));
  check(ww::h2o_select_and_compact(tokens(k, 0, prompt), tokens(v, 0, prompt), column_sums.get(),
                                   nullptr, cache, state, budget, {}, nullptr));

  // Decode; a model would compute a new q, k and v for each step and each layer.
  for (int i = 0; i < steps; ++i) {
    check(ww::h2o_decode_attention(device, tokens(q, i, 1), tokens(k, i, 1), tokens(v, i, 1),
                                   ww::rotary_view{}, cache, state, budget, tokens(out, i, 1),
                                   {scratch.get(), scratch_bytes}, nullptr));
    check(ww::h2o_advance(state, 1, slots, budget, nullptr));
  }

  // Head 0 still holds the sinks and the most recent tokens; in between, the heavy hitters.
  auto kept = position.download();
  const int free = free_slot.download()[0];
  kept.resize(slots);
  kept.erase(kept.begin() + free);
  std::sort(kept.begin(), kept.end());
  std::printf("head 0 keeps %zu of %d tokens:", kept.size(), prompt + steps);
  for (const int p : kept) std::printf(" %d", p);
  std::printf("\n");
  const bool sinks_kept = kept[0] == 0 && kept[1] == 1;
  return sinks_kept && kept[slots - 1 - budget.recent] == prompt + steps - budget.recent ? 0 : 1;
}
