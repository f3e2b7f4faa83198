// A stream, points in it, and captured sequences of launches that are replayed with one call.
#pragma once

#include <cuda_runtime_api.h>

#include "examples/pythia/model/cuda_check.hpp"

namespace pythia {

class CudaStream {
 public:
  CudaStream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags");
  }
  ~CudaStream() { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A point in a stream that the host can wait for.
class CudaEvent {
 public:
  explicit CudaEvent(unsigned flags = cudaEventDisableTiming) {
    check_cuda(cudaEventCreateWithFlags(&event_, flags), "cudaEventCreateWithFlags");
  }
  ~CudaEvent() { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void record(cudaStream_t stream) {
    check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
  }
  void synchronize() const { check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  cudaEvent_t get() const { return event_; }

  /// Between two events made with cudaEventDefault, once this one has come.
  double seconds_since(const CudaEvent& start) const {
    float milliseconds = 0.0f;
    check_cuda(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// A second stream whose work runs beside that of the first, from a point of it to another.
/// Captured, it becomes branches of the graph.
class SideStream {
 public:
  cudaStream_t get() const { return stream_.get(); }

  /// What is enqueued on the side from here on comes after what `main` holds now. early: main has
  /// been joined since the side's last launch, of which a captured side is then not reminded. A
  /// kernel of a graph that depends on one other alone may start before that has ended
  /// (dependent_launch.cuh); one that depends on two starts 2 us after both.
  void fork(cudaStream_t main, bool early = false) {
    if (early) forget();
    forked_.record(main);
    wait(stream_.get(), forked_);
  }
  /// What is enqueued on `main` from here on comes after what the side holds now.
  void join(cudaStream_t main) {
    joined_.record(stream_.get());
    wait(main, joined_);
  }

 private:
  /// Makes the next launch of a captured side depend on nothing before it there.
  void forget() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream_.get(), &status), "cudaStreamIsCapturing");
    if (status != cudaStreamCaptureStatusActive) return;
    constexpr unsigned kReplace = cudaStreamSetCaptureDependencies;
#if CUDART_VERSION >= 13000
    check_cuda(cudaStreamUpdateCaptureDependencies(stream_.get(), nullptr, nullptr, 0, kReplace),
               "cudaStreamUpdateCaptureDependencies");
#else
    check_cuda(cudaStreamUpdateCaptureDependencies(stream_.get(), nullptr, 0, kReplace),
               "cudaStreamUpdateCaptureDependencies");
#endif
  }
  static void wait(cudaStream_t stream, const CudaEvent& event) {
    check_cuda(cudaStreamWaitEvent(stream, event.get(), 0), "cudaStreamWaitEvent");
  }

  CudaStream stream_;
  CudaEvent forked_, joined_;
};

class CudaGraph {
 public:
  CudaGraph() = default;
  ~CudaGraph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  /// Records what `enqueue` launches on `stream`, once: later calls do nothing.
  template <class Enqueue>
  void capture(cudaStream_t stream, const Enqueue& enqueue) {
    if (executable_ != nullptr) return;
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed),
               "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
    check_cuda(cudaGraphUpload(executable_, stream), "cudaGraphUpload");
  }

  /// Replays the recording.
  void launch(cudaStream_t stream) {
    check_cuda(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace pythia
