// What is still to be sent to one target, by one link or several.
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

// Where several links serve a queue, each has a part of the bytes, and takes from another's when it
// has none left: links that read far from one another are up to a fifth faster than links that read
// neighbouring memory. Thread-safe.
class TargetQueue {
 public:
  // `links`: how many serve this queue. `bytes`: what will be pushed in all, as it travels.
  TargetQueue(std::size_t links, std::uint64_t bytes) : bytes_(bytes), parts_(links) {}

  void push(std::span<const Job> jobs);
  // Takes the next batch for a link of this number. False when there is none, or none for it.
  bool try_claim(std::size_t link, const ClaimLimits& limits, Batch& batch);
  // Nothing is given out afterwards.
  void stop();

 private:
  using Jobs = std::deque<Job>;

  Jobs& part_for(std::size_t link);
  std::uint64_t fair_share(const ClaimLimits& limits) const;
  void take_bytes(Job& job, std::uint64_t limit, Batch& batch);

  const std::uint64_t bytes_;
  std::mutex mutex_;
  std::vector<Jobs> parts_;  // by link
  std::uint64_t pushed_bytes_ = 0;
  std::uint64_t pending_bytes_ = 0;
  bool stopped_ = false;
};

}  // namespace sllm::lanes
