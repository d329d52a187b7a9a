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

std::uint64_t travelling_bytes(const Job& job) {
  std::uint64_t bytes = job.copy.size;
  for (const CodedSegment& segment : job.segments) bytes += segment.stored_size;
  return bytes;
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
    const std::size_t part = pushed_bytes_ * parts_.size() / std::max<std::uint64_t>(bytes_, 1);
    parts_[std::min(part, parts_.size() - 1)].push_back(job);
    pushed_bytes_ += travelling_bytes(job);
    pending_bytes_ += job.copy.size;
  }
}

// A link that has nothing left takes the later half of what is left of the largest part.
TargetQueue::Jobs& TargetQueue::part_for(std::size_t link) {
  Jobs& own = parts_[link];
  if (!own.empty()) return own;
  Jobs& largest = *std::max_element(parts_.begin(), parts_.end(), [](const Jobs& a, const Jobs& b) {
    return a.size() < b.size();
  });
  if (largest.size() < 2) return largest;
  const auto half = largest.begin() + static_cast<std::ptrdiff_t>((largest.size() + 1) / 2);
  own.assign(half, largest.end());
  largest.erase(half, largest.end());
  return own;
}

void TargetQueue::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
}

std::uint64_t TargetQueue::fair_share(const ClaimLimits& limits) const {
  if (parts_.size() == 1) return limits.raw_bytes;
  const std::uint64_t share = pending_bytes_ / (parts_.size() * kSharesPerLink);
  return std::min(limits.raw_bytes, std::max(share, kShareMin));
}

bool TargetQueue::try_claim(std::size_t link, const ClaimLimits& limits, Batch& batch) {
  std::lock_guard lock(mutex_);
  batch = {};
  if (stopped_) return false;
  Jobs& jobs = part_for(link);
  if (jobs.empty()) return false;
  if (limits.from_host_only && jobs.front().source_device != cuda::kHostMemory) return false;
  const std::uint64_t limit = fair_share(limits);
  batch.source_device = jobs.front().source_device;
  while (!jobs.empty() && batch.staged_bytes < limit) {
    Job& job = jobs.front();
    if (!is_empty(batch) && !may_join(batch, job)) break;
    const bool is_coded = !job.segments.empty();
    if (is_coded) {
      take_segments(job, limits.coded_bytes, batch);
    } else {
      take_bytes(job, limit, batch);
    }
    if (job.segments.empty() && job.copy.size == 0) jobs.pop_front();
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
