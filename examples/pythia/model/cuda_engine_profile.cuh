// Where the time of a step goes: it is captured again and again, each time with one launch more,
// and what it takes longer each time is what that launch adds where it stands, overlap and gaps
// included. So the parts add up to the step. The token kernel, which is the whole step, is taken
// apart by its own time stamps (cuda_token_times.hpp). Part of cuda_engine_impl.cuh.
#pragma once

namespace pythia {

template <class T>
StepBytes CudaEngine<T>::bytes_of_step() {
  LaunchLog log;
  log.live_slots = std::min(position_ + 1, kv_.capacity);
  const int batch = options_.batch_size;
  StepBytes bytes;
  bytes.multiplying[kHeadTile] = linear_bytes(weights_.embed_out, batch);
  for (const CudaLayer<T>& layer : weights_.layers) {
    bytes.multiplying[kQkvTile] += linear_bytes(layer.qkv, batch);
    bytes.multiplying[kUpTile] += linear_bytes(layer.up, batch);
    bytes.multiplying[kDownTile] += linear_bytes(layer.down, batch);
    bytes.multiplying[kDenseTile] += linear_bytes(layer.dense, batch);
    bytes.attention += decode_step(batch).attention_bytes(&log, batch);
  }
  return bytes;
}

/// Weights, and the live keys and values of all sequences.
template <class T>
double CudaEngine<T>::step_bytes() {
  const StepBytes bytes = bytes_of_step();
  return std::accumulate(std::begin(bytes.multiplying), std::end(bytes.multiplying),
                         bytes.attention);
}

/// Of one replay among `replays`, the median of several measurements.
template <class T>
double CudaEngine<T>::graph_seconds(CudaGraph& graph, int replays) const {
  constexpr int kMeasurements = 3;
  CudaEvent start(cudaEventDefault), stop(cudaEventDefault);
  std::array<double, kMeasurements> seconds;
  graph.launch(launch_.stream);
  for (double& each : seconds) {
    start.record(launch_.stream);
    for (int i = 0; i < replays; ++i) graph.launch(launch_.stream);
    stop.record(launch_.stream);
    stop.synchronize();
    each = stop.seconds_since(start) / replays;
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[kMeasurements / 2];
}

/// Puts the parts of the token kernel in the place of its launch.
inline void take_apart(const std::vector<TokenTimes>& times, const StepBytes& bytes,
                       const char* kernel, std::vector<StepProfile::Part>* parts) {
  const auto launch =
      std::find_if(parts->begin(), parts->end(),
                   [&](const StepProfile::Part& part) { return part.kind == kernel; });
  const std::vector<StepProfile::Part> inside = token_parts(times, bytes, launch->seconds);
  parts->insert(parts->erase(launch), inside.begin(), inside.end());
}

template <class T>
StepProfile CudaEngine<T>::profile_step() {
  constexpr int kSteps = 64;
  // Few launches to a step leave time for more replays, and the cache has room for so many.
  const int replays = token_step_.active() ? kSteps / 4 : 3;
  require_room(3 * kSteps);
  StepProfile profile;
  run(kSteps);  // a cache with a budget is full then
  profile.read_roof = measure_read_roof(launch_.device, arena_.data(), arena_.bytes(), stream_);
  profile.bytes = step_bytes();
  LaunchLog log;
  log.live_slots = std::min(position_ + 1, kv_.capacity);
  LaunchContext logged = launch_;
  logged.log = &log;
  DeviceArena timing;
  const auto timed_blocks = static_cast<std::size_t>(token_step_.timed_blocks());
  if (timed_blocks > 0) {
    timing.add(&log.times, timed_blocks);
    timing.allocate(0, &meter_);
  }
  // A position enters a cache that evicts once only. One that does not may fill up.
  log.advances = kv_.evicts;
  double before = 0.0;
  for (int most = 0; most == 0 || most <= static_cast<int>(log.entries.size()); ++most) {
    log.entries.clear();
    log.most = most;
    CudaGraph prefix;
    prefix.capture(launch_.stream, [&] { enqueue_generation(logged, greedy_); });
    const double seconds = graph_seconds(prefix, replays);
    const std::string kind =
        most == 0 ? "graph, advance" : log.entries[static_cast<std::size_t>(most - 1)].kind;
    auto part = std::find_if(profile.parts.begin(), profile.parts.end(),
                             [&](const StepProfile::Part& p) { return p.kind == kind; });
    if (part == profile.parts.end()) {
      profile.parts.push_back({kind});
      part = profile.parts.end() - 1;
    }
    ++part->launches;
    if (most > 0) part->bytes += log.entries[static_cast<std::size_t>(most - 1)].bytes;
    part->seconds += seconds - before;
    before = seconds;
  }
  if (timed_blocks > 0) {
    take_apart(download(log.times, timed_blocks), bytes_of_step(), kTokenKernel, &profile.parts);
  }
  profile.seconds =
      graph_seconds(greedy_ && chooses_in_kernel() ? greedy_graph_ : generate_graph_, kSteps / 4);
  position_ = -1;  // the caches hold what no prompt has led to
  return profile;
}

}  // namespace pythia
