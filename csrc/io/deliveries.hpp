// The second half of a transfer: bytes of complete steps on their way to GPUs and host memory.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "io/control.hpp"
#include "io/errors.hpp"
#include "io/host_work.hpp"
#include "io/transfer_plan.hpp"
#include "lanes/link_set.hpp"

namespace sllm::io {

class Deliveries {
 public:
  // Called by any thread.
  struct Events {
    std::function<void(std::size_t step)> step_done;
    std::function<void()> host_work_changed;  // there is more of it, or it is over
    std::function<void(std::exception_ptr)> failed;
  };

  // Request and plan outlive this. Nothing moves yet.
  Deliveries(const TransferRequest& request, const TransferPlan& plan, Control& control,
             Events events);
  Deliveries(const Deliveries&) = delete;
  Deliveries& operator=(const Deliveries&) = delete;

  void start();
  // Sends what a step delivers, which is not nothing; step_done follows. Thread-safe.
  void deliver(std::size_t step);
  // The part that the host's threads do: each calls this until it is over.
  void do_host_work();
  bool has_host_work() const { return host_work_.has_ready(); }
  bool is_host_work_over() const { return host_work_.is_over(); }
  // Nothing more is sent. Thread-safe.
  void stop();
  // Returns when nothing is under way.
  void finish();

  // Once finished.
  std::uint64_t bytes() const { return bytes_.load(); }
  std::chrono::steady_clock::time_point begin() const { return begin_; }

 private:
  struct StepState {
    std::atomic<std::uint64_t> bytes_left{0};
  };

  void make_links();
  int source_device(std::size_t step) const;
  void send_copies(std::size_t step, int from);
  void run_task(const HostTask& task);
  void delivered(std::size_t step, std::uint64_t bytes);
  void find_corrupt(std::size_t step, std::span<const lanes::CodedSegment> segments);
  SystemError corrupt_error(std::size_t step, const std::byte* stored,
                            const std::string& why) const;

  const TransferRequest& request_;
  const TransferPlan& plan_;
  Control& control_;
  const Events events_;
  std::vector<StepState> states_;
  HostWork host_work_;
  std::unique_ptr<lanes::LinkSet> links_;  // null where nothing goes to a GPU
  std::atomic<bool> stopped_{false};
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<bool> has_begun_{false};
  std::chrono::steady_clock::time_point begin_;  // by whoever sets has_begun_
};

}  // namespace sllm::io
