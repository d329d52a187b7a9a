#include "io/writer.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "io/crc32c.hpp"
#include "io/errors.hpp"
#include "io/file.hpp"
#include "io/transfer_plan.hpp"
#include "io/worker_group.hpp"

namespace sllm::io {
namespace {

constexpr std::size_t kBlockSize = WriteQueue::kSlabSize;
// Summed and copied while it is in the processor's cache.
constexpr std::size_t kCacheSize = 64 << 10;

bool is_direct_possible(int fd) {
  struct statfs file_system{};
  if (::fstatfs(fd, &file_system) != 0) return false;
  if (is_memory_file_system(static_cast<long>(file_system.f_type))) return false;
  const int alignment = query_direct_alignment(fd);
  return alignment != 0 && alignment <= static_cast<int>(kPageSize);
}

void set_direct(int fd, bool direct) {
  const int flags = ::fcntl(fd, F_GETFL);
  // Refusal is an answer: the file is then written through the page cache.
  static_cast<void>(::fcntl(fd, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT));
}

bool is_direct(int fd) {
  return (::fcntl(fd, F_GETFL) & O_DIRECT) != 0;
}

}  // namespace

FileWriter::FileWriter(std::string path, std::int64_t threads, bool direct,
                       std::shared_ptr<Tuner> tuner)
    : path_(checked_path(std::move(path))), threads_(checked_threads(threads)) {
  file_ = Descriptor(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!file_.valid()) throw SystemError(errno, errno_text(errno), path_);
  if (!direct || !is_direct_possible(file_.get())) return;
  set_direct(file_.get(), true);
  if (!is_direct(file_.get())) return;
  queue_ = WriteQueue::create(file_.get(), threads_, std::move(tuner),
                              [this](const std::byte* memory, std::uint64_t size,
                                     std::uint64_t offset) { write_fully(memory, size, offset); });
}

void FileWriter::require_open() const {
  if (!file_.valid()) throw std::invalid_argument("the writer of " + path_ + " is closed");
  if (failed_) {
    throw std::invalid_argument("the writer of " + path_ + " has failed before: abort() it");
  }
}

std::vector<std::uint32_t> FileWriter::write(const std::vector<WritePiece>& pieces,
                                             Control& control) {
  std::lock_guard lock(mutex_);
  require_open();
  const std::uint64_t end = check(pieces);
  control.throw_if_cancelled();
  Layout layout = lay_out(pieces);
  if (!layout.segments.empty()) {
    failed_ = true;  // until it has succeeded
    write_layout(layout, end, control);
    failed_ = false;
  }
  std::vector<std::uint32_t> crcs(pieces.size(), 0);
  for (const Segment& segment : layout.segments) {
    crcs[segment.piece] = crc32c_combine(crcs[segment.piece], segment.crc, segment.size);
  }
  return crcs;
}

// Returns the end of the last piece.
std::uint64_t FileWriter::check(const std::vector<WritePiece>& pieces) const {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  std::uint64_t end = end_;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const auto [offset, address, size] = pieces[i];
    const std::string name = "piece " + std::to_string(i);
    if (offset < 0 || size < 0 || offset > kMax - size || address < 0 || address > kMax - size) {
      throw std::invalid_argument(name + ": offset, address or size is out of range");
    }
    if (size != 0 && address == 0) throw std::invalid_argument(name + ": it has no memory");
    if (static_cast<std::uint64_t>(offset) < end) {
      throw std::invalid_argument(name + ": offset " + std::to_string(offset) +
                                  " is before the end of what was written, " + std::to_string(end));
    }
    end = static_cast<std::uint64_t>(offset + size);
  }
  return end;
}

FileWriter::Layout FileWriter::lay_out(const std::vector<WritePiece>& pieces) {
  Layout layout;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    auto offset = static_cast<std::uint64_t>(pieces[i].offset);
    auto left = static_cast<std::uint64_t>(pieces[i].size);
    const auto* source = reinterpret_cast<const std::byte*>(pieces[i].address);
    while (left != 0) {
      const std::uint64_t index = offset / kBlockSize;
      const std::size_t within = offset % kBlockSize;
      const std::size_t size = std::min<std::uint64_t>(left, kBlockSize - within);
      if (layout.blocks.empty() || layout.blocks.back().index != index) {
        layout.blocks.push_back({index, layout.segments.size(), 0});
      }
      layout.segments.push_back({i, within, source, size, 0});
      ++layout.blocks.back().segment_count;
      offset += size;
      source += size;
      left -= size;
    }
  }
  return layout;
}

void FileWriter::write_layout(Layout& layout, std::uint64_t end, Control& control) {
  const Block last = layout.blocks.back();
  const std::uint64_t start =
      layout.blocks.front().index * kBlockSize + layout.segments.front().block_offset;
  reserve(start, end - start);
  if (carry_filled_ != 0 && carry_index_ < layout.blocks.front().index) flush_carry();
  const bool carried = carry_filled_ != 0;  // then it is the first block
  const bool partial = end % kBlockSize != 0;
  AlignedMemory next_carry = partial ? allocate_aligned(kBlockSize) : nullptr;

  ItemClaims claims(layout.blocks.size(), control);
  run_workers(threads_, claims, control, [&](ItemClaims& items) {
    AlignedMemory slab;
    for (std::size_t item = 0; items.try_claim(item);) {
      const Block& block = layout.blocks[item];
      const bool kept = partial && block.index == last.index;
      if (!kept && slab == nullptr) {
        slab = queue_ != nullptr ? queue_->take_slab() : allocate_aligned(kBlockSize);
      }
      std::byte* memory = kept ? next_carry.get() : slab.get();
      const std::size_t filled = carried && item == 0 ? carry_filled_ : 0;
      if (filled != 0) std::memcpy(memory, carry_.get(), filled);
      const std::uint64_t bytes = fill(memory, filled, layout, block);
      if (!kept) write_block(slab, block.index * kBlockSize);
      control.add_bytes(bytes);
    }
  });

  carry_ = std::move(next_carry);
  carry_index_ = last.index;
  carry_filled_ = partial ? static_cast<std::size_t>(end % kBlockSize) : 0;
  end_ = end;
}

// Takes the slab away where it is written in the background.
void FileWriter::write_block(AlignedMemory& slab, std::uint64_t offset) {
  if (queue_ != nullptr) {
    queue_->push(std::move(slab), offset);
  } else {
    write_fully(slab.get(), kBlockSize, offset);
  }
}

void FileWriter::reserve(std::uint64_t offset, std::uint64_t size) {
  int result = 0;
  do {
    result = ::fallocate(file_.get(), 0, static_cast<off_t>(offset), static_cast<off_t>(size));
  } while (result != 0 && errno == EINTR);
  if (result == 0 || errno == EOPNOTSUPP || errno == ENOSYS) return;
  throw_system_error(errno, "no room for " + std::to_string(size) + " bytes", path_);
}

std::uint64_t FileWriter::fill(std::byte* slab, std::size_t filled, Layout& layout,
                               const Block& block) {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < block.segment_count; ++i) {
    Segment& segment = layout.segments[block.first_segment + i];
    std::memset(slab + filled, 0, segment.block_offset - filled);
    for (std::size_t done = 0; done < segment.size;) {
      const std::size_t size = std::min(segment.size - done, kCacheSize);
      segment.crc = crc32c(segment.crc, segment.source + done, size);
      std::memcpy(slab + segment.block_offset + done, segment.source + done, size);
      done += size;
    }
    filled = segment.block_offset + segment.size;
    bytes += segment.size;
  }
  std::memset(slab + filled, 0, kBlockSize - filled);
  return bytes;
}

void FileWriter::flush_carry() {
  // The slab is zero after its data, so that a direct write can be rounded up.
  const std::uint64_t size = align_up(carry_filled_, kPageSize);
  write_fully(carry_.get(), size, carry_index_ * kBlockSize);
  carry_filled_ = 0;
}

void FileWriter::write_fully(const std::byte* memory, std::uint64_t size, std::uint64_t offset) {
  for (std::uint64_t done = 0; done < size;) {
    const ssize_t count =
        ::pwrite(file_.get(), memory + done, size - done, static_cast<off_t>(offset + done));
    if (count >= 0) {
      done += static_cast<std::uint64_t>(count);
      if (done % kPageSize != 0) set_direct(file_.get(), false);  // the rest is not aligned
    } else if (errno == EINVAL && is_direct(file_.get())) {
      set_direct(file_.get(), false);
    } else if (errno != EINTR && errno != EAGAIN) {
      throw_system_error(errno,
                         "cannot write " + std::to_string(size - done) + " bytes at offset " +
                             std::to_string(offset + done),
                         path_);
    }
  }
}

void FileWriter::finish(std::int64_t total_size) {
  std::lock_guard lock(mutex_);
  require_open();
  if (total_size < 0 || static_cast<std::uint64_t>(total_size) < end_) {
    throw std::invalid_argument("total_size " + std::to_string(total_size) +
                                " is less than what was written, " + std::to_string(end_));
  }
  failed_ = true;
  if (queue_ != nullptr) queue_->drain();
  queue_.reset();
  if (carry_filled_ != 0) flush_carry();
  carry_.reset();
  if (::ftruncate(file_.get(), static_cast<off_t>(total_size)) != 0) {
    throw_system_error(errno, "cannot set the length " + std::to_string(total_size), path_);
  }
  if (::fsync(file_.get()) != 0) throw_system_error(errno, "cannot sync", path_);
  if (::close(file_.release()) != 0 && errno != EINTR) {
    throw_system_error(errno, "cannot close", path_);
  }
}

void FileWriter::abort() {
  std::lock_guard lock(mutex_);
  queue_.reset();
  carry_.reset();
  file_.reset();
}

}  // namespace sllm::io
