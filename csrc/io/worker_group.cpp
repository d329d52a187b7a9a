#include "io/worker_group.hpp"

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sllm::io {

void run_workers(unsigned threads, ItemClaims& claims, Control& control,
                 const std::function<void(ItemClaims&)>& work) {
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto fail = [&](std::exception_ptr error) {
    claims.stop();
    std::lock_guard lock(mutex);
    if (first_error == nullptr) first_error = std::move(error);
  };
  {
    std::vector<std::jthread> group;
    try {
      for (std::size_t i = 0; i < std::min<std::size_t>(threads, claims.count()); ++i) {
        group.emplace_back([&] {
          try {
            work(claims);
          } catch (...) {
            fail(std::current_exception());
          }
        });
      }
    } catch (...) {  // a thread that cannot be started: those that run must stop
      fail(std::current_exception());
    }
  }
  if (first_error != nullptr) std::rethrow_exception(first_error);
  control.throw_if_cancelled();
}

}  // namespace sllm::io
