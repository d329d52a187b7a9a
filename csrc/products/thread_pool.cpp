#include "products/thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sllm::products {
namespace {

constexpr std::size_t kWorkersMax = 255;
constexpr std::uint32_t kJoinedMask = 0xFFFF;
constexpr std::uint32_t kLimitShift = 16;
constexpr std::uint32_t kLimitMask = 0xFF;
constexpr std::uint32_t kOpen = 1U << 31;
// A decoding step multiplies every few tens of microseconds: waking up would cost as much.
constexpr std::chrono::microseconds kSpinTime{100};
constexpr int kPausesPerLook = 32;

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Returns what `number` is once it is not `old`. It spins a little, then sleeps: a thread that went
// on spinning, or yielded, would keep its processor from the one it waits for until the next tick.
std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& number, std::uint32_t old) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      const std::uint32_t found = number.load();
      if (found != old) return found;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < end);
  number.wait(old);
  return number.load();
}

ThreadPool* current = nullptr;

}  // namespace

ThreadPool& ThreadPool::instance() {
  static std::once_flag once;
  std::call_once(once, [] {
    current = new ThreadPool();
    // A child has none of the threads, and perhaps a lock that nobody will release.
    pthread_atfork(nullptr, nullptr, [] { current = new ThreadPool(); });
  });
  return *current;
}

void ThreadPool::run(const Work& work, std::size_t threads) {
  const std::size_t helpers = std::min({threads, work.count, kWorkersMax + 1}) - 1;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (helpers == 0 || !lock.owns_lock()) {
    for (std::size_t item = 0; item < work.count; ++item) work.run(work.context, item);
    return;
  }
  start_workers(helpers);
  work_ = work;
  next_.store(0, std::memory_order_relaxed);
  left_.store(0, std::memory_order_relaxed);
  state_.store(kOpen | static_cast<std::uint32_t>(helpers) << kLimitShift,
               std::memory_order_release);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  claim_all();
  const std::uint32_t joined = state_.exchange(0) & kJoinedMask;
  std::uint32_t left = left_.load();
  while (left != joined) left = wait_for_change(left_, left);
}

void ThreadPool::start_workers(std::size_t count) {
  while (workers_ < count) {
    try {
      std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      return;  // The caller does what the missing thread would have done.
    }
    ++workers_;
  }
}

void ThreadPool::serve() {
  std::uint32_t seen = epoch_.load() - 1;  // There may be work already.
  while (true) {
    seen = wait_for_change(epoch_, seen);
    if (try_join()) {
      claim_all();
      left_.fetch_add(1);
      left_.notify_one();
    }
  }
}

bool ThreadPool::try_join() {
  std::uint32_t state = state_.load();
  while ((state & kOpen) != 0 && (state & kJoinedMask) < (state >> kLimitShift & kLimitMask)) {
    if (state_.compare_exchange_weak(state, state + 1)) return true;
  }
  return false;
}

void ThreadPool::claim_all() {
  for (std::size_t item = next_.fetch_add(1); item < work_.count; item = next_.fetch_add(1)) {
    work_.run(work_.context, item);
  }
}

}  // namespace sllm::products
