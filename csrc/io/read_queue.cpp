#include "io/read_queue.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string>
#include <utility>

#include "io/aligned_memory.hpp"
#include "io/errors.hpp"

namespace sllm::io {
namespace {

constexpr unsigned kEntries = 256;
constexpr std::uint64_t kRequestSize = 1 << 20;
// A request after another costs 40 us on a virtual disk, so there they are as large as it takes.
constexpr std::uint64_t kRequestSizeInTurns = 4 << 20;
constexpr unsigned kRetryMicroseconds = 100;

void require(int error) {
  if (error != 0 && error != EAGAIN && error != EBUSY) throw_system_error(error, "io_uring_enter");
}

}  // namespace

std::unique_ptr<ReadQueue> ReadQueue::create(std::vector<std::shared_ptr<const File>> files,
                                             Order order) {
  int error = 0;
  std::unique_ptr<Uring> ring = Uring::create(kEntries, error, Uring::Users::kAnyThread);
  if (ring == nullptr || !ring->can_time_out()) return nullptr;
  return std::unique_ptr<ReadQueue>(new ReadQueue(std::move(ring), std::move(files), order));
}

ReadQueue::~ReadQueue() {
  drain();
}

std::uint64_t ReadQueue::begin(std::span<const Read> reads, Memory memory) {
  check(reads, memory);
  std::lock_guard lock(mutex_);
  const std::uint64_t number = next_++;
  Batch& batch = batches_.emplace(number, Batch{std::move(memory), 0, nullptr}).first->second;
  for (const Read& read : reads) cut(read, batch);
  reap();
  submit_waiting();
  return number;
}

void ReadQueue::check(std::span<const Read> reads, const Memory& memory) const {
  for (const Read& read : reads) {
    if (read.file >= files_.size()) {
      throw std::invalid_argument("there is no file " + std::to_string(read.file));
    }
    if (read.place > memory.size || read.size > memory.size - read.place) {
      throw std::invalid_argument("a read of " + std::to_string(read.size) +
                                  " bytes does not fit its memory");
    }
  }
}

void ReadQueue::cut(const Read& read, Batch& batch) {
  const File& file = *files_[read.file];
  const std::uint64_t most = order_ == Order::kInTurns ? kRequestSizeInTurns : kRequestSize;
  for (std::uint64_t done = 0; done < read.size; done += most) {
    const std::uint64_t size = std::min(most, read.size - done);
    waiting_.push_back({&file, read.offset + done, size, read.place + done, &batch, false});
    ++batch.pending;
  }
}

void ReadQueue::submit_waiting() {
  for (; !waiting_.empty() && in_flight_ < kEntries; waiting_.pop_front()) start(waiting_.front());
  if (ring_->has_queued()) require(ring_->submit(0));
}

void ReadQueue::start(Request request) {
  const File& file = *request.file;
  const Memory& memory = request.batch->memory;
  std::byte* destination = memory.address + request.place;
  const std::uint64_t alignment = file.direct_alignment();
  std::uint64_t size = request.size;
  if (alignment != 0 && !file.direct_refused() && request.offset % alignment == 0 &&
      reinterpret_cast<std::uintptr_t>(destination) % alignment == 0) {
    const std::uint64_t whole = align_up(request.size, alignment);
    // A disk's blocks may be larger than pages: what is in the next page is another read's.
    request.direct = whole <= align_up(request.size, kPageSize) &&
                     whole <= memory.size - request.place &&
                     !file.is_mostly_resident(request.offset, request.size);
    if (request.direct) size = whole;
  }
  if (free_.empty()) {
    free_.push_back(requests_.size());
    requests_.emplace_back();
  }
  const std::size_t index = free_.back();
  // What the page cache has is copied by the kernel's threads, not by whoever wants to compute.
  const Uring::Manner manner{!request.direct, order_ == Order::kInTurns};
  const int fd = request.direct ? file.direct_fd() : file.buffered_fd();
  while (!ring_->try_read(fd, destination, static_cast<std::uint32_t>(size), request.offset, index,
                          manner)) {
    require(ring_->submit(0));
  }
  requests_[index] = request;
  free_.pop_back();
  ++in_flight_;
}

bool ReadQueue::wait(std::uint64_t number, Clock::time_point deadline) {
  std::lock_guard lock(mutex_);
  const auto found = batches_.find(number);
  if (found == batches_.end()) {
    throw std::invalid_argument("no read has the number " + std::to_string(number));
  }
  Batch& batch = found->second;
  for (;;) {
    reap();
    submit_waiting();
    if (batch.pending == 0) break;
    const auto left = deadline - Clock::now();
    if (left <= Clock::duration::zero()) return false;
    require(ring_->submit_for(left));
  }
  const std::exception_ptr error = batch.error;
  batches_.erase(found);
  if (error != nullptr) std::rethrow_exception(error);
  return true;
}

void ReadQueue::drain() noexcept {
  std::lock_guard lock(mutex_);
  waiting_.clear();
  while (in_flight_ != 0) {
    // The kernel owns the memory until it answers; there is nothing to do but ask again.
    if (ring_->submit(1) != 0) ::usleep(kRetryMicroseconds);
    Uring::Result result{};
    while (ring_->try_take(result)) --in_flight_;
  }
  free_.clear();
  requests_.clear();
  batches_.clear();
}

void ReadQueue::reap() {
  Uring::Result result{};
  while (ring_->try_take(result)) finish(result);
}

void ReadQueue::finish(const Uring::Result& result) {
  const auto index = static_cast<std::size_t>(result.tag);
  const Request request = requests_[index];
  Batch& batch = *request.batch;
  free_.push_back(index);
  --in_flight_;
  --batch.pending;
  if (request.direct && (result.result == -EINVAL || result.result == -EOPNOTSUPP)) {
    request.file->refuse_direct();
  }
  const std::uint64_t got =
      std::min(request.size, static_cast<std::uint64_t>(std::max(result.result, 0)));
  if (got == request.size || batch.error != nullptr) return;
  try {  // The page cache serves the rest, or says why not.
    request.file->read_exactly(request.offset + got, batch.memory.address + request.place + got,
                               request.size - got);
  } catch (...) {
    batch.error = std::current_exception();
  }
}

}  // namespace sllm::io
