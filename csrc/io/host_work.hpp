// Bytes of finished steps that go to host memory, for all of a transfer's threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>

namespace sllm::io {

// A piece to copy, or a coded segment to decode.
struct HostTask {
  std::size_t step;
  const std::byte* source;
  std::byte* destination;
  std::uint64_t stored_size;
  std::uint64_t raw_size;
  bool is_coded;
};

// Throws SystemError where a segment is corrupt.
void run_task(const HostTask& task);

// Thread-safe. The tasks are the plan's, and outlive this.
class HostWork {
 public:
  // `count`: how many tasks there will be in all.
  explicit HostWork(std::size_t count) : left_(count) {}

  void add(std::span<const HostTask> tasks);
  // The next task, or null where there is none at present.
  const HostTask* try_take();
  bool has_ready() const;
  // Whether the last one was taken.
  bool is_over() const;

 private:
  mutable std::mutex mutex_;
  std::deque<std::span<const HostTask>> ready_;
  std::size_t left_;
};

}  // namespace sllm::io
