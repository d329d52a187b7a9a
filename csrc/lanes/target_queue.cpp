#include "lanes/target_queue.hpp"

#include <algorithm>

namespace sllm::lanes {
namespace {

// Where several links share a queue, what they take shrinks towards the end, so that they end
// together; below this, what a copy costs beside its bytes would show.
constexpr std::uint64_t kShareMin = 4 << 20;
constexpr std::uint64_t kSharesPerLink = 8;

bool is_adjacent(const RawCopy& copy, const RawCopy& next) {
  return copy.source + copy.size == next.source && copy.destination + copy.size == next.destination;
}

bool is_empty(const Batch& batch) {
  return batch.copies.empty() && batch.segments.empty();
}

bool may_join(const Batch& batch, const Job& job) {
  if (!batch.segments.empty() || !job.segments.empty()) return false;
  if (batch.source_device != job.source_device) return false;
  if (batch.parts.back().step == job.step) return true;
  return batch.joinable && job.joinable && is_adjacent(batch.copies.back(), job.copy);
}

void take_segments(Job& job, std::uint64_t limit, Batch& batch) {
  batch.layout = plan_slot(job.segments, limit);
  const std::size_t count = batch.layout.offsets.size();
  batch.segments = job.segments.first(count);
  job.segments = job.segments.subspan(count);
  std::uint64_t bytes = 0;
  for (const CodedSegment& segment : batch.segments) bytes += segment.raw_size;
  batch.parts.push_back({job.step, bytes});
}

}  // namespace

void TargetQueue::push(std::span<const Job> jobs) {
  std::lock_guard lock(mutex_);
  for (const Job& job : jobs) {
    pending_bytes_ += job.copy.size;
    jobs_.push_back(job);
  }
}

void TargetQueue::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
}

std::uint64_t TargetQueue::fair_share(const ClaimLimits& limits) const {
  if (links_ == 1) return limits.raw_bytes;
  const std::uint64_t share = pending_bytes_ / (links_ * kSharesPerLink);
  return std::min(limits.raw_bytes, std::max(share, kShareMin));
}

bool TargetQueue::try_claim(const ClaimLimits& limits, Batch& batch) {
  std::lock_guard lock(mutex_);
  batch = {};
  if (stopped_ || jobs_.empty()) return false;
  if (limits.from_host_only && jobs_.front().source_device != cuda::kHostMemory) return false;
  const std::uint64_t limit = fair_share(limits);
  batch.source_device = jobs_.front().source_device;
  while (!jobs_.empty() && batch.staged_bytes < limit) {
    Job& job = jobs_.front();
    if (!is_empty(batch) && !may_join(batch, job)) break;
    const bool is_coded = !job.segments.empty();
    if (is_coded) {
      take_segments(job, limits.coded_bytes, batch);
    } else {
      take_bytes(job, limit, batch);
    }
    if (job.segments.empty() && job.copy.size == 0) jobs_.pop_front();
    if (is_coded) break;
  }
  return true;
}

void TargetQueue::take_bytes(Job& job, std::uint64_t limit, Batch& batch) {
  const std::uint64_t size = std::min(job.copy.size, limit - batch.staged_bytes);
  const RawCopy taken{job.copy.source, job.copy.destination, size};
  if (!batch.copies.empty() && is_adjacent(batch.copies.back(), taken)) {
    batch.staged_bytes -= padded(batch.copies.back().size);
    batch.copies.back().size += size;
  } else {
    batch.copies.push_back(taken);
  }
  batch.staged_bytes += padded(batch.copies.back().size);
  if (batch.parts.empty() || batch.parts.back().step != job.step)
    batch.parts.push_back({job.step, 0});
  batch.parts.back().bytes += size;
  batch.joinable = batch.joinable && job.joinable;
  job.copy.source += size;
  job.copy.destination += size;
  job.copy.size -= size;
  pending_bytes_ -= size;
}

}  // namespace sllm::lanes
