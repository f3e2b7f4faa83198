// A fixed set of threads that share the iterations of a loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace pythia {

class ThreadPool {
 public:
  /// `threads` counts the caller of parallel_for; 0 takes one per core this process may use.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  /// Calls task(i, worker) once for every i in [0, count), worker in [0, size()); returns when all
  /// are done. Which worker runs which i varies, so tasks must not depend on it but for scratch
  /// memory. The first exception a task throws is thrown again here. Not to be called from inside a
  /// task.
  void parallel_for(std::int64_t count, const std::function<void(std::int64_t, int)>& task);

 private:
  void serve(int worker);
  void work(int worker);

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(std::int64_t, int)>* task_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::uint64_t generation_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;
};

}  // namespace pythia
