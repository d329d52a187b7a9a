// What is still to be sent to one target, for whichever link takes it first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

#include "lanes/slot_layout.hpp"
#include "shim/cuda_driver.hpp"
#include "shim/peer_access.hpp"

namespace sllm::lanes {

struct RawCopy {
  cuda::DevicePointer source;  // in host memory, or in that of the job's source device
  cuda::DevicePointer destination;
  std::uint64_t size;
};

// Bytes of one step: raw ones, or coded segments.
struct Job {
  std::size_t step;
  RawCopy copy{};
  std::span<const CodedSegment> segments{};  // where there are any, there is no copy
  int source_device = cuda::kHostMemory;
  // No step waits for this one: it may be reported late, with those that it is sent with.
  bool joinable = false;
};

// What a link sends at once and reports at once.
struct Batch {
  struct Part {
    std::size_t step;
    std::uint64_t bytes;
  };

  int source_device = cuda::kHostMemory;
  std::vector<RawCopy> copies;
  std::span<const CodedSegment> segments;
  SlotLayout layout;  // of the segments
  std::vector<Part> parts;
  std::uint64_t staged_bytes = 0;  // what the copies take in a slot
  bool joinable = true;
};

struct ClaimLimits {
  std::uint64_t raw_bytes;
  std::uint64_t coded_bytes;
  bool from_host_only;
};

// Thread-safe.
class TargetQueue {
 public:
  // `links`: how many serve this queue.
  explicit TargetQueue(std::size_t links) : links_(links) {}

  void push(std::span<const Job> jobs);
  // Takes the next batch. False when there is none, or none for this link.
  bool try_claim(const ClaimLimits& limits, Batch& batch);
  // Nothing is given out afterwards.
  void stop();

 private:
  std::uint64_t fair_share(const ClaimLimits& limits) const;
  void take_bytes(Job& job, std::uint64_t limit, Batch& batch);

  const std::size_t links_;
  std::mutex mutex_;
  std::deque<Job> jobs_;
  std::uint64_t pending_bytes_ = 0;
  bool stopped_ = false;
};

}  // namespace sllm::lanes
