// Progress, cancellation and waiting, shared by a running call and those who watch it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>

#include "io/errors.hpp"

namespace sllm::io {

class Control {
 public:
  void cancel() { source_.request_stop(); }
  bool cancelled() const { return source_.stop_requested(); }
  void throw_if_cancelled() const {
    if (cancelled()) throw CancelledError();
  }
  // For std::stop_callback: whoever blocks on something else is woken by a cancel.
  std::stop_token token() const { return source_.get_token(); }

  std::uint64_t bytes_done() const { return bytes_done_.load(); }
  void add_bytes(std::uint64_t bytes);
  std::uint64_t wait(std::uint64_t above_bytes, std::chrono::duration<double> timeout);

 private:
  std::stop_source source_;
  std::atomic<std::uint64_t> bytes_done_{0};
  std::atomic<int> waiters_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace sllm::io
