#include "io/reader.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "io/errors.hpp"

namespace sllm::io {
namespace {

// Room for any depth that is asked for later.
constexpr unsigned kRingEntries = 256;
// Below this an unaligned range is read whole through the slab rather than as head, body, tail.
constexpr std::uint64_t kSmallSize = 64 << 10;

std::string describe(std::uint64_t offset, std::uint64_t size) {
  return "cannot read " + std::to_string(size) + " bytes at offset " + std::to_string(offset);
}

}  // namespace

ReadMode parse_read_mode(const std::string& name) {
  if (name == "auto") return ReadMode::kAuto;
  if (name == "buffered") return ReadMode::kBuffered;
  if (name == "direct") return ReadMode::kDirect;
  if (name == "io_uring") return ReadMode::kUring;
  if (name == "cufile") return ReadMode::kCufile;
  throw std::invalid_argument("mode '" + name +
                              "' is none of 'auto', 'buffered', 'direct', 'io_uring', 'cufile'");
}

void require_read_mode(ReadMode mode, std::span<const std::shared_ptr<const File>> files) {
  if (mode == ReadMode::kDirect) {
    for (const auto& file : files) {
      if (file->direct_alignment() != 0) continue;
      throw SystemError(EOPNOTSUPP, "the file system has no direct reads; use mode 'auto'",
                        file->path());
    }
  }
  if (mode == ReadMode::kCufile && !cufile::unavailable_reason().empty()) {
    throw SystemError(
        EOPNOTSUPP,
        "cuFile is not available (" + cufile::unavailable_reason() + "); use mode 'auto'",
        files.empty() ? "" : files.front()->path());
  }
  int error = 0;
  if (mode == ReadMode::kUring && Uring::create(1, error) == nullptr) {
    throw SystemError(EOPNOTSUPP,
                      "io_uring is not available (" + errno_text(error) + "); use mode 'auto'");
  }
}

bool has_queues(ReadMode mode) {
  if (mode != ReadMode::kAuto && mode != ReadMode::kUring) return false;
  int error = 0;
  return Uring::create(1, error) != nullptr;
}

bool try_join(ReadRange& range, const ReadRange& next) {
  if (range.file != next.file || range.arena != next.arena) return false;
  if (range.offset + range.size != next.offset) return false;
  if (range.destination + range.size != next.destination) return false;
  range.size += next.size;
  return true;
}

Reader::Reader(ReadMode mode, unsigned depth, std::uint32_t size) : mode_(mode) {
  tune(depth, size);
}

Reader::~Reader() {
  drain();
}

void Reader::tune(unsigned depth, std::uint32_t size) {
  depth_ = std::clamp(depth, 1U, kRingEntries);
  size_ = static_cast<std::uint32_t>(align_up(std::max<std::uint32_t>(size, kPageSize), kPageSize));
}

void Reader::submit(const ReadRange& range, Ticket& ticket, Source source) {
  if (range.size == 0) return;
  if (range.arena != nullptr) {
    read_to_device(range);
    return;
  }
  switch (mode_) {
    case ReadMode::kBuffered:
      read_buffered(range);
      break;
    case ReadMode::kDirect:
      read_direct(range, ticket);
      break;
    case ReadMode::kUring:
      if (range.file->direct_alignment() != 0) {
        read_direct(range, ticket);
      } else {
        read_in_place(range, false, ticket);
      }
      break;
    case ReadMode::kAuto:
    case ReadMode::kCufile:
      if (is_on_disk(range, source)) {
        read_direct(range, ticket);
      } else {
        read_buffered(range);
      }
      break;
  }
}

bool Reader::is_on_disk(const ReadRange& range, Source source) const {
  const File& file = *range.file;
  if (file.direct_alignment() == 0 || file.direct_refused()) return false;
  if (source == Source::kUnknown) return !file.is_mostly_resident(range.offset, range.size);
  return source == Source::kDisk;
}

void Reader::read_buffered(const ReadRange& range) {
  range.file->read_exactly(range.offset, range.destination, range.size);
  bytes_buffered_ += range.size;
}

// At once: cuFile has no queue but its callers' threads.
void Reader::read_to_device(const ReadRange& range) {
  const File& file = *range.file;
  const auto address = reinterpret_cast<cuda::DevicePointer>(range.destination);
  for (std::uint64_t done = 0; done < range.size;) {
    const std::uint64_t got = file.cufile_handle().read(
        range.offset + done,
        {range.arena->ordinal, range.arena->base, address + done - range.arena->base,
         std::min<std::uint64_t>(range.size - done, size_)});
    if (got == 0) file.throw_too_short(range.offset, range.size);
    done += got;
    bytes_direct_ += got;
  }
}

void Reader::read_direct(const ReadRange& range, Ticket& ticket) {
  const std::uint64_t alignment = range.file->direct_alignment();
  const auto address = reinterpret_cast<std::uintptr_t>(range.destination);
  const std::uint64_t end = range.offset + range.size;
  const std::uint64_t body = align_up(range.offset, alignment);
  const std::uint64_t tail = align_down(end, alignment);
  const bool congruent = address % alignment == range.offset % alignment;
  const bool whole = body == range.offset && tail == end;
  if (!congruent || body >= tail || (!whole && range.size < kSmallSize)) {
    read_bounced(range, ticket);
    return;
  }
  const auto part = [&](std::uint64_t from, std::uint64_t to) {
    return ReadRange{range.file, from, to - from, range.destination + (from - range.offset)};
  };
  if (body > range.offset) read_bounced(part(range.offset, body), ticket);
  read_in_place(part(body, tail), true, ticket);
  if (end > tail) read_bounced(part(tail, end), ticket);
}

void Reader::read_bounced(const ReadRange& range, Ticket& ticket) {
  const std::uint64_t alignment = range.file->direct_alignment();
  const std::uint64_t end = range.offset + range.size;
  for (std::uint64_t at = range.offset; at < end;) {
    const std::size_t index = take_operation();
    Operation& operation = operations_[index];
    operation.file = range.file;
    operation.io_offset = align_down(at, alignment);
    operation.io_size = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(align_up(end, alignment) - operation.io_offset, size_));
    operation.skip = static_cast<std::uint32_t>(at - operation.io_offset);
    operation.size = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(end - at, operation.io_size - operation.skip));
    operation.destination = range.destination + (at - range.offset);
    operation.bounced = true;
    operation.direct = true;
    operation.ticket = &ticket;
    at += operation.size;
    start(index);
  }
}

void Reader::read_in_place(const ReadRange& range, bool direct, Ticket& ticket) {
  for (std::uint64_t done = 0; done < range.size;) {
    const std::size_t index = take_operation();
    Operation& operation = operations_[index];
    operation.file = range.file;
    operation.io_offset = range.offset + done;
    operation.io_size =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(range.size - done, size_));
    operation.skip = 0;
    operation.size = operation.io_size;
    operation.destination = range.destination + done;
    operation.bounced = false;
    operation.direct = direct;
    operation.ticket = &ticket;
    done += operation.size;
    start(index);
  }
}

bool Reader::open_ring() {
  if (ring_ != nullptr) return true;
  if (ring_refused_ || mode_ == ReadMode::kDirect) return false;
  int error = 0;
  ring_ = Uring::create(kRingEntries, error);
  ring_refused_ = ring_ == nullptr;
  if (ring_refused_ && mode_ == ReadMode::kUring) {
    throw SystemError(EOPNOTSUPP, "io_uring is not available: " + errno_text(error));
  }
  return ring_ != nullptr;
}

std::size_t Reader::take_operation() {
  while (in_flight_ >= depth_) reap_one();
  if (free_.empty()) {
    operations_.emplace_back();
    free_.push_back(operations_.size() - 1);
  }
  const std::size_t index = free_.back();
  free_.pop_back();
  return index;
}

void Reader::start(std::size_t index) {
  Operation& operation = operations_[index];
  if (operation.bounced && operation.slab_size < operation.io_size) {
    operation.slab_size = size_;
    operation.slab = allocate_aligned(size_);
  }
  if (mode_ == ReadMode::kDirect || !open_ring()) {
    free_.push_back(index);  // reusable after this call: nothing else starts meanwhile
    read_now(operation);
    return;
  }
  const int fd = operation.direct ? operation.file->direct_fd() : operation.file->buffered_fd();
  std::byte* target = operation.bounced ? operation.slab.get() : operation.destination;
  while (!ring_->try_read(fd, target, operation.io_size, operation.io_offset, index)) flush();
  ++operation.ticket->pending;
  ++in_flight_;
  flush();  // now: the disk must not wait until a completion has been dealt with
}

void Reader::read_now(Operation& operation) {
  const int fd = operation.direct ? operation.file->direct_fd() : operation.file->buffered_fd();
  std::byte* target = operation.bounced ? operation.slab.get() : operation.destination;
  std::int64_t count = 0;
  do {
    count = ::pread(fd, target, operation.io_size, static_cast<off_t>(operation.io_offset));
  } while (count < 0 && (errno == EINTR || errno == EAGAIN));
  finish(operation, count < 0 ? -errno : count);
}

void Reader::finish(Operation& operation, std::int64_t result) {
  const File& file = *operation.file;
  const std::uint64_t offset = operation.io_offset + operation.skip;
  if (result < 0) {
    const int error = static_cast<int>(-result);
    const bool refused = operation.direct && (error == EINVAL || error == EOPNOTSUPP);
    if (!refused) throw_system_error(error, describe(offset, operation.size), file.path());
    if (mode_ != ReadMode::kAuto && mode_ != ReadMode::kCufile) {
      throw SystemError(EOPNOTSUPP,
                        describe(offset, operation.size) + " directly: the file system refused",
                        file.path());
    }
    file.refuse_direct();
    result = 0;
  }
  const std::uint64_t got = std::min<std::uint64_t>(
      operation.size,
      static_cast<std::uint64_t>(std::max<std::int64_t>(result - operation.skip, 0)));
  if (operation.bounced) {
    std::memcpy(operation.destination, operation.slab.get() + operation.skip, got);
  }
  (operation.direct ? bytes_direct_ : bytes_buffered_) += got;
  if (got < operation.size) {  // a short read: the page cache serves the rest, or says why not
    read_buffered({&file, offset + got, operation.size - got, operation.destination + got});
  }
}

void Reader::finish_from_ring(std::size_t index, int result) {
  Operation& operation = operations_[index];
  --in_flight_;
  --operation.ticket->pending;
  free_.push_back(index);
  // An old kernel has rings but no reads by them, and a busy one may ask for another try.
  const bool again = result == -EAGAIN || result == -EINTR || result == -EINVAL ||
                     result == -EOPNOTSUPP || result == -ENOSYS;
  if (again) {
    read_now(operation);
  } else {
    finish(operation, result);
  }
}

void Reader::reap(bool block) {
  if (in_flight_ == 0) return;
  Uring::Result completion{};
  if (!try_complete(completion, block)) return;
  do {
    finish_from_ring(static_cast<std::size_t>(completion.tag), completion.result);
  } while (ring_->try_take(completion));
}

bool Reader::try_complete(Uring::Result& completion, bool block) {
  if (ring_->try_take(completion)) return true;
  const int error = ring_->submit(block ? 1 : 0);
  const bool busy = error == EAGAIN || error == EBUSY;
  if (error != 0 && !busy) throw_system_error(error, "io_uring_enter");
  return ring_->try_take(completion);
}

void Reader::reap_one() {
  Uring::Result completion{};
  if (!try_complete(completion, true)) return;
  finish_from_ring(static_cast<std::size_t>(completion.tag), completion.result);
}

void Reader::flush() {
  if (ring_ == nullptr || !ring_->has_queued()) return;
  const int error = ring_->submit(0);
  if (error == EAGAIN || error == EBUSY) {
    reap(true);
  } else if (error != 0) {
    throw_system_error(error, "io_uring_enter");
  }
}

void Reader::drain() noexcept {
  Uring::Result completion{};
  while (in_flight_ != 0) {
    const int error = ring_->submit(1);
    // The kernel owns the destinations until it answers; there is nothing to do but ask again.
    if (error != 0) ::usleep(100);
    while (ring_->try_take(completion)) --in_flight_;
  }
}

}  // namespace sllm::io
