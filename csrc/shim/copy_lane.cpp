#include "shim/copy_lane.hpp"

#include <string>
#include <utility>

#include "shim/cuda_device.hpp"
#include "shim/peer_access.hpp"

namespace sllm::cuda {
namespace {

constexpr unsigned kStreamNonBlocking = 1;
// The watching thread sleeps in the driver rather than spin beside the readers.
constexpr unsigned kEventBlockingSyncNoTiming = 1 | 2;

}  // namespace

CopyLane::CopyLane(int ordinal, Events events) : ordinal_(ordinal), events_(std::move(events)) {
  ContextScope scope(ordinal);
  check(driver().stream_create(&stream_, kStreamNonBlocking),
        "cuStreamCreate on device " + std::to_string(ordinal));
  try {
    watcher_ = std::thread([this] { watch(); });
  } catch (...) {
    static_cast<void>(driver().stream_destroy(stream_));
    throw;
  }
}

CopyLane::~CopyLane() {
  finish();
  try {
    ContextScope scope(ordinal_);
    // Also the copies of a batch whose event could not be recorded are over after this.
    static_cast<void>(driver().stream_synchronize(stream_));
    static_cast<void>(driver().stream_destroy(stream_));
  } catch (const DriverError&) {
    // A context that cannot be entered runs no copies.
  }
}

void CopyLane::enqueue(const LaneCopy& copy, int from) {
  if (from == kHostMemory) {
    check(driver().copy_to_device_async(copy.destination, copy.source, copy.size, stream_),
          "cuMemcpyHtoDAsync of " + std::to_string(copy.size) + " bytes to device " +
              std::to_string(ordinal_));
  } else {
    copy_between_devices({from, reinterpret_cast<DevicePointer>(copy.source)},
                         {ordinal_, copy.destination}, copy.size, stream_);
  }
}

void CopyLane::issue(std::size_t batch, int from, std::span<const LaneCopy> copies) {
  const Driver& d = driver();
  if (from != kHostMemory && from != ordinal_) {
    static_cast<void>(try_enable_peer_access(ordinal_, from));  // without, the driver stages
  }
  ContextScope scope(ordinal_);
  EventHandle event = nullptr;
  check(d.event_create(&event, kEventBlockingSyncNoTiming), "cuEventCreate");
  std::uint64_t bytes = 0;
  try {
    std::lock_guard lock(mutex_);
    for (const LaneCopy& copy : copies) {
      enqueue(copy, from);
      bytes += copy.size;
    }
    check(d.event_record(event, stream_), "cuEventRecord");
    batches_.push_back({batch, bytes, event});
  } catch (...) {
    static_cast<void>(d.event_destroy(event));
    throw;
  }
  changed_.notify_one();
}

void CopyLane::finish() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_one();
  if (watcher_.joinable()) watcher_.join();
}

void CopyLane::watch() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return closed_ || !batches_.empty(); });
    if (batches_.empty()) return;
    const Batch batch = batches_.front();
    batches_.pop_front();
    lock.unlock();
    try {
      const Driver& d = driver();
      ContextScope scope(ordinal_);
      const Result result = d.event_synchronize(batch.event);
      static_cast<void>(d.event_destroy(batch.event));
      check(result, "copies to device " + std::to_string(ordinal_));
      events_.complete(batch.index, batch.bytes);
    } catch (...) {
      events_.failed(std::current_exception());
    }
    lock.lock();
  }
}

}  // namespace sllm::cuda
