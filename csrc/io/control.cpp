#include "io/control.hpp"

namespace sllm::io {

void Control::add_bytes(std::uint64_t bytes) {
  bytes_done_.fetch_add(bytes);
  if (waiters_.load() == 0) return;
  {
    std::lock_guard lock(mutex_);
  }
  changed_.notify_all();
}

std::uint64_t Control::wait(std::uint64_t above_bytes, std::chrono::duration<double> timeout) {
  const auto deadline = std::chrono::steady_clock::now() +
                        std::chrono::duration_cast<std::chrono::steady_clock::duration>(timeout);
  std::unique_lock lock(mutex_);
  waiters_.fetch_add(1);
  changed_.wait_until(lock, deadline, [&] { return bytes_done_.load() > above_bytes; });
  waiters_.fetch_sub(1);
  return bytes_done_.load();
}

}  // namespace sllm::io
