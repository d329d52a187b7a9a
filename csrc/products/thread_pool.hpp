// Threads that stay between short pieces of work: they spin a little, then sleep.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace sllm::products {

// What items are claimed of. `run` is called with numbers below `count`, by several threads.
struct Work {
  void (*run)(const void* context, std::size_t item);
  const void* context;
  std::size_t count;
};

// One per process; its threads are never joined. Whoever comes while it is busy works alone.
class ThreadPool {
 public:
  static ThreadPool& instance();

  // Does all of the work, on up to `threads` threads with the caller's. Nobody waits for a thread
  // that has not woken up yet.
  void run(const Work& work, std::size_t threads);

 private:
  ThreadPool() = default;

  void start_workers(std::size_t count);
  void serve();
  bool try_join();
  void claim_all();

  std::mutex mutex_;  // held by the caller whose work this is
  std::size_t workers_ = 0;
  Work work_{};
  std::atomic<std::size_t> next_{0};
  std::atomic<std::uint32_t> left_{0};
  std::atomic<std::uint32_t> state_{0};  // open or not, how many may join, how many did
  std::atomic<std::uint32_t> epoch_{0};  // counts pieces of work; sleepers wait for it to change
};

}  // namespace sllm::products
