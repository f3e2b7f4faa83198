// A chain of launches captured in a CUDA Graph, and the timing of its replays.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#include "bench/harness/check.hpp"
#include "bench/harness/statistics.hpp"

namespace bench {

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "creating an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Keeps the stream busy for some 40 us.
void hold(cudaStream_t stream);

/// Runs `work` on `stream` between two events; the seconds between them. The stream is held first,
/// so that the host has enqueued the work before its time begins.
template <class Work>
double time_once(cudaStream_t stream, const Work& work) {
  const Event begin, end;
  hold(stream);
  check(cudaEventRecord(begin, stream), "recording an event");
  work();
  check(cudaEventRecord(end, stream), "recording an event");
  check(cudaEventSynchronize(end), "waiting for timed work");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "reading an event");
  return 1e-3 * milliseconds;
}

class Chain {
 public:
  /// Enqueues the i-th operation of the chain on the stream that is being captured.
  using Launch = std::function<cudaError_t(int)>;
  /// Enqueues what must happen before each replay, outside the timed region.
  using Before = std::function<void()>;

  /// Captures launch(0) ... launch(operations - 1).
  Chain(cudaStream_t stream, int operations, const Launch& launch, Before before = {})
      : stream_(stream), operations_(operations), before_(std::move(before)) {
    cudaGraph_t graph = nullptr;
    cudaError_t launched = cudaSuccess;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "beginning a capture");
    for (int i = 0; i < operations && launched == cudaSuccess; ++i) launched = launch(i);
    const cudaError_t captured = cudaStreamEndCapture(stream, &graph);
    check(launched, "launching into a capture");
    check(captured, "ending a capture");
    const cudaError_t instantiated = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(instantiated, "instantiating a graph");
  }
  ~Chain() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }
  Chain(Chain&& other) noexcept
      : stream_(other.stream_),
        operations_(other.operations_),
        before_(std::move(other.before_)),
        executable_(std::exchange(other.executable_, nullptr)) {}
  Chain& operator=(Chain&&) = delete;

  /// One replay: seconds per operation.
  double replay() const {
    if (before_) before_();
    const double seconds =
        time_once(stream_, [&] { check(cudaGraphLaunch(executable_, stream_), "replaying"); });
    return seconds / operations_;
  }
  int operations() const { return operations_; }

 private:
  cudaStream_t stream_;
  int operations_;
  Before before_;
  cudaGraphExec_t executable_ = nullptr;
};

/// A chain over a rotation of `copies` buffers that runs long enough (0.6 ms) for the start of a
/// graph and the resolution of events not to show: whole rounds of the rotation.
inline Chain rotating_chain(cudaStream_t stream, int copies, const Chain::Launch& launch) {
  constexpr double kSeconds = 6e-4;
  Chain once(stream, copies, launch);
  once.replay();
  const double round = once.replay() * copies;
  const int rounds = static_cast<int>(std::ceil(kSeconds / round));
  return rounds <= 1 ? std::move(once) : Chain(stream, copies * rounds, launch);
}

/// Replays the chains in turn until the card has settled: its clock follows the power drawn a
/// moment before.
inline void settle(const std::vector<const Chain*>& chains) {
  constexpr double kSeconds = 0.15;
  for (double seconds = 0; seconds < kSeconds;) {
    for (const Chain* chain : chains) seconds += chain->replay() * chain->operations();
  }
}

/// Times the chains in turn (A B A B ...), so that whatever the card does over time, clocks and
/// heat, it does to all of them. Seconds per operation of each.
inline std::vector<Statistics> measure(const std::vector<const Chain*>& chains) {
  constexpr double kBudgetSeconds = 0.03;  // of device time, for all chains together
  constexpr double kFewest = 9, kMost = 40;
  double turn = 0;
  for (const Chain* chain : chains) {
    chain->replay();
    turn += chain->replay() * chain->operations();
  }
  const int replays = static_cast<int>(std::clamp(kBudgetSeconds / turn, kFewest, kMost));
  std::vector<std::vector<double>> samples(chains.size());
  for (int i = 0; i < replays; ++i) {
    for (std::size_t c = 0; c < chains.size(); ++c) samples[c].push_back(chains[c]->replay());
  }
  std::vector<Statistics> result;
  for (auto& times : samples) result.push_back(summarise(std::move(times)));
  return result;
}

}  // namespace bench
