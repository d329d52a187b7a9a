#include "shim/cuda_stream.hpp"

#include <string>

#include "shim/cuda_device.hpp"

namespace sllm::cuda {
namespace {

constexpr unsigned kStreamNonBlocking = 1;
// Who waits sleeps in the driver rather than spin beside the readers.
constexpr unsigned kEventBlockingSyncNoTiming = 1 | 2;

}  // namespace

Stream::Stream(int ordinal) : ordinal_(ordinal) {
  ContextScope scope(ordinal);
  check(driver().stream_create(&handle_, kStreamNonBlocking),
        "cuStreamCreate on device " + std::to_string(ordinal));
}

void Stream::drain() const noexcept {
  try {
    ContextScope scope(ordinal_);
    static_cast<void>(driver().stream_synchronize(handle_));
  } catch (const DriverError&) {
    // A context that cannot be entered runs no copies.
  }
}

Stream::~Stream() {
  drain();
  try {
    ContextScope scope(ordinal_);
    static_cast<void>(driver().stream_destroy(handle_));
  } catch (const DriverError&) {
    // The driver is shutting down and takes its streams with it.
  }
}

Event::Event(int ordinal) : ordinal_(ordinal) {
  ContextScope scope(ordinal);
  check(driver().event_create(&handle_, kEventBlockingSyncNoTiming), "cuEventCreate");
}

Event::~Event() {
  try {
    ContextScope scope(ordinal_);
    static_cast<void>(driver().event_destroy(handle_));
  } catch (const DriverError&) {
    // The driver is shutting down and takes its events with it.
  }
}

void Event::record(const Stream& stream) const {
  check(driver().event_record(handle_, stream.handle()), "cuEventRecord");
}

void Event::hold(const Stream& stream) const {
  check(require(driver().stream_wait_event, "cuStreamWaitEvent")(stream.handle(), handle_, 0),
        "cuStreamWaitEvent");
}

void Event::wait() const {
  ContextScope scope(ordinal_);
  check(driver().event_synchronize(handle_), "the work of device " + std::to_string(ordinal_));
}

}  // namespace sllm::cuda
