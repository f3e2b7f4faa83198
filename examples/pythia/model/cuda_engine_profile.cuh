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

/// Of one replay of each graph among `replays`, the medians of an odd number of measurements, for
/// which the graphs take turns: clock and power drift.
template <class T>
std::vector<double> CudaEngine<T>::graph_seconds(const std::vector<CudaGraph*>& graphs, int replays,
                                                 int measurements) const {
  CudaEvent start(cudaEventDefault), stop(cudaEventDefault);
  std::vector<std::vector<double>> measured(graphs.size());
  graphs.front()->launch(launch_.stream);
  for (int i = 0; i < measurements; ++i) {
    for (std::size_t g = 0; g < graphs.size(); ++g) {
      start.record(launch_.stream);
      for (int replay = 0; replay < replays; ++replay) graphs[g]->launch(launch_.stream);
      stop.record(launch_.stream);
      stop.synchronize();
      measured[g].push_back(stop.seconds_since(start) / replays);
    }
  }
  std::vector<double> seconds;
  for (auto& of_graph : measured) {
    std::sort(of_graph.begin(), of_graph.end());
    seconds.push_back(of_graph[of_graph.size() / 2]);
  }
  return seconds;
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
  CudaGraph& step = greedy_ && chooses_in_kernel() ? greedy_graph_ : generate_graph_;
  double before = 0.0;
  for (int most = 0; most == 0 || most <= static_cast<int>(log.entries.size()); ++most) {
    log.entries.clear();
    log.most = most;
    CudaGraph prefix;
    prefix.capture(launch_.stream, [&] { enqueue_generation(logged, greedy_); });
    const bool whole = most == static_cast<int>(log.entries.size());
    const std::vector<double> measured =
        whole ? graph_seconds({&prefix, &step}, /*replays=*/8, /*measurements=*/9)
              : graph_seconds({&prefix}, /*replays=*/3, /*measurements=*/3);
    const double seconds = measured.front();
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
    if (whole) profile.seconds = measured.back();
  }
  if (timed_blocks > 0) {
    take_apart(download(log.times, timed_blocks), bytes_of_step(), kTokenKernel, &profile.parts);
  }
  position_ = -1;  // the caches hold what no prompt has led to
  return profile;
}

}  // namespace pythia
