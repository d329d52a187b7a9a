// Streams and events of a device, each destroyed with its object.
#pragma once

#include "shim/cuda_driver.hpp"

namespace sllm::cuda {

class Stream {
 public:
  explicit Stream(int ordinal);
  // Waits for what was enqueued: memory that it uses may be freed afterwards.
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  StreamHandle handle() const { return handle_; }
  // Waits for what was enqueued, whether or not it succeeds.
  void drain() const noexcept;

 private:
  int ordinal_;
  StreamHandle handle_ = nullptr;
};

class Event {
 public:
  explicit Event(int ordinal);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // After all that is in the stream, which is of the same device.
  void record(const Stream& stream) const;
  // Makes a stream of any device wait for the last record.
  void hold(const Stream& stream) const;
  // Sleeps until the last record is reached; throws DriverError for what failed before it.
  void wait() const;

 private:
  int ordinal_;
  EventHandle handle_ = nullptr;
};

}  // namespace sllm::cuda
