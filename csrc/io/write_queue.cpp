#include "io/write_queue.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "io/errors.hpp"
#include "io/reader.hpp"

namespace sllm::io {
namespace {

constexpr unsigned kRingEntries = 256;

double now_s() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

}  // namespace

std::unique_ptr<WriteQueue> WriteQueue::create(int fd, std::size_t slabs_ahead,
                                               std::shared_ptr<Tuner> tuner, Rewrite rewrite) {
  if (tuner == nullptr) tuner = fixed_tuner(true);
  if (!tuner->queued() || !has_queues(ReadMode::kAuto)) return nullptr;
  std::unique_ptr<WriteQueue> queue(
      new WriteQueue(fd, slabs_ahead, std::move(tuner), std::move(rewrite)));
  queue->writer_ = std::thread([self = queue.get()] { self->run(); });
  return queue;
}

WriteQueue::~WriteQueue() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  if (writer_.joinable()) writer_.join();
}

AlignedMemory WriteQueue::take_slab() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock,
                [&] { return error_ != nullptr || !free_slabs_.empty() || slabs_ < slabs_max(); });
  throw_if_failed();
  if (free_slabs_.empty()) {
    AlignedMemory slab = allocate_aligned(kSlabSize);
    ++slabs_;
    return slab;
  }
  AlignedMemory slab = std::move(free_slabs_.back());
  free_slabs_.pop_back();
  return slab;
}

void WriteQueue::push(AlignedMemory slab, std::uint64_t offset) {
  auto block = std::make_unique<Block>();
  block->slab = std::move(slab);
  block->offset = offset;
  {
    std::lock_guard lock(mutex_);
    throw_if_failed();
    waiting_.push_back(std::move(block));
    ++blocks_;
  }
  changed_.notify_all();
}

void WriteQueue::drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return error_ != nullptr || blocks_ == 0; });
  throw_if_failed();
}

// Those being filled, those in flight, and as many again that wait for their turn.
std::size_t WriteQueue::slabs_max() const {
  const IoSetting setting = tuner_->setting();
  const std::uint64_t in_flight = std::uint64_t{setting.depth} * setting.size;
  return slabs_ahead_ + 2 * std::max<std::size_t>(1, in_flight / kSlabSize);
}

void WriteQueue::throw_if_failed() const {
  if (error_ != nullptr) std::rethrow_exception(error_);
}

void WriteQueue::run() {
  int error = 0;
  const std::unique_ptr<Uring> ring = Uring::create(kRingEntries, error);
  tuner_->begin(1);
  try {
    if (ring == nullptr) throw SystemError(error, "io_uring: " + errno_text(error));
    write_all(*ring);
  } catch (...) {
    fail(std::current_exception());
  }
  // The kernel owns the slabs until it answers.
  while (in_flight_ != 0) {
    Uring::Result result{};
    if (ring->try_take(result)) {
      --in_flight_;
    } else {
      static_cast<void>(ring->submit(1));
    }
  }
  tuner_->end();
}

void WriteQueue::write_all(Uring& ring) {
  for (;;) {
    const bool full = in_flight_ >= tuner_->setting().depth;
    std::unique_ptr<Block> block = full ? nullptr : next(in_flight_ == 0);
    if (block != nullptr) {
      submit(ring, std::move(block));
    } else if (in_flight_ != 0) {
      if (!full) tuner_->interrupt();  // the disk waits for who fills the slabs
      reap(ring);
    } else {
      return;
    }
  }
}

std::unique_ptr<WriteQueue::Block> WriteQueue::next(bool wait) {
  std::unique_lock lock(mutex_);
  if (wait && waiting_.empty() && !closed_) {
    tuner_->interrupt();
    changed_.wait(lock, [&] { return closed_ || !waiting_.empty(); });
  }
  if (waiting_.empty()) return nullptr;
  std::unique_ptr<Block> block = std::move(waiting_.front());
  waiting_.pop_front();
  return block;
}

void WriteQueue::submit(Uring& ring, std::unique_ptr<Block> owned) {
  Block& block = *owned;
  active_.push_back(std::move(owned));
  for (std::uint32_t within = 0; within < kSlabSize;) {
    const IoSetting setting = tuner_->setting();
    while (in_flight_ >= setting.depth) reap(ring);
    const auto size = static_cast<std::uint32_t>(
        std::min<std::size_t>(align_up(setting.size, kPageSize), kSlabSize - within));
    if (free_requests_.empty()) {
      free_requests_.push_back(requests_.size());
      requests_.emplace_back();
    }
    const std::size_t index = free_requests_.back();
    if (!ring.try_write(fd_, block.slab.get() + within, size, block.offset + within, index)) {
      reap(ring);
      continue;
    }
    free_requests_.pop_back();
    requests_[index] = {&block, within, size};
    within += size;
    block.submitted = within == kSlabSize;
    ++block.pending;
    ++in_flight_;
    const int error = ring.submit(0);
    if (error != 0 && error != EAGAIN && error != EBUSY)
      throw_system_error(error, "io_uring_enter");
  }
}

void WriteQueue::reap(Uring& ring) {
  Uring::Result result{};
  if (!ring.try_take(result)) {
    const int error = ring.submit(1);
    if (error != 0 && error != EAGAIN && error != EBUSY)
      throw_system_error(error, "io_uring_enter");
    if (!ring.try_take(result)) return;
  }
  complete(result);
}

void WriteQueue::complete(const Uring::Result& result) {
  const auto index = static_cast<std::size_t>(result.tag);
  const auto [block, within, size] = requests_[index];
  free_requests_.push_back(index);
  --in_flight_;
  --block->pending;
  // A part, an error, or an old kernel: asked once more, and plainly.
  const auto written =
      static_cast<std::uint32_t>(std::max(result.result, 0)) / kPageSize * kPageSize;
  if (written < size) {
    tuner_->interrupt();
    rewrite_(block->slab.get() + within + written, size - written,
             block->offset + within + written);
  }
  tuner_->add(written, now_s());
  if (block->pending != 0 || !block->submitted) return;
  const auto found = std::find_if(active_.begin(), active_.end(),
                                  [&](const auto& entry) { return entry.get() == block; });
  give_back(std::move((*found)->slab));
  active_.erase(found);
}

void WriteQueue::give_back(AlignedMemory slab) {
  {
    std::lock_guard lock(mutex_);
    free_slabs_.push_back(std::move(slab));
    --blocks_;
  }
  changed_.notify_all();
}

void WriteQueue::fail(std::exception_ptr error) {
  {
    std::lock_guard lock(mutex_);
    if (error_ == nullptr) error_ = std::move(error);
    waiting_.clear();
  }
  changed_.notify_all();
}

}  // namespace sllm::io
