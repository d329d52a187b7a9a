// Several threads that claim numbered items in order, and the first error among them.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>

#include "io/control.hpp"

namespace sllm::io {

// Gives out item numbers in ascending order until they are all taken, an error or a cancel.
class ItemClaims {
 public:
  ItemClaims(std::size_t count, const Control& control) : count_(count), control_(control) {}

  bool try_claim(std::size_t& item) {
    if (stopped_.load() || control_.cancelled()) return false;
    item = next_.fetch_add(1);
    return item < count_;
  }
  void stop() { stopped_.store(true); }
  std::size_t count() const { return count_; }

 private:
  std::size_t count_;
  const Control& control_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stopped_{false};
};

// Runs `work` on up to `threads` threads, waits for them all, and throws the first error, or
// CancelledError where the control was cancelled.
void run_workers(unsigned threads, ItemClaims& claims, Control& control,
                 const std::function<void(ItemClaims&)>& work);

}  // namespace sllm::io
