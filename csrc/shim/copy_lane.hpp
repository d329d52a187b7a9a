// One device's side of a transfer: a stream of copies and a thread that sees them complete.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>

#include "shim/cuda_driver.hpp"

namespace sllm::cuda {

struct LaneCopy {
  const std::byte* source;  // or an address in device memory, where the batch's source is there
  DevicePointer destination;
  std::size_t size;
};

class CopyLane {
 public:
  // Called by the lane's thread, in the order of issue.
  struct Events {
    std::function<void(std::size_t batch, std::uint64_t bytes)> complete;
    std::function<void(std::exception_ptr)> failed;
  };

  CopyLane(int ordinal, Events events);
  // Waits for every copy that was issued.
  ~CopyLane();
  CopyLane(const CopyLane&) = delete;
  CopyLane& operator=(const CopyLane&) = delete;

  int device() const { return ordinal_; }
  // Enqueues the copies; `complete(batch)` follows. Any thread may call it. `from` is the device
  // whose memory the sources are in, or kHostMemory.
  void issue(std::size_t batch, int from, std::span<const LaneCopy> copies);
  // Waits until every issued copy is complete and reported. Nothing is issued afterwards.
  void finish();

 private:
  struct Batch {
    std::size_t index;
    std::uint64_t bytes;
    EventHandle event;
  };

  void enqueue(const LaneCopy& copy, int from);
  void watch();

  int ordinal_;
  Events events_;
  StreamHandle stream_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> batches_;
  bool closed_ = false;
  std::thread watcher_;
};

}  // namespace sllm::cuda
