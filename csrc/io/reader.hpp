// Reads file ranges into memory for one thread, by the means its mode and the file allow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/aligned_memory.hpp"
#include "io/file.hpp"
#include "io/uring.hpp"
#include "shim/cuda_driver.hpp"

namespace sllm::io {

// kCufile is kAuto for reads into host memory.
enum class ReadMode { kAuto, kBuffered, kDirect, kUring, kCufile };

// Throws std::invalid_argument for a name that is none of them.
ReadMode parse_read_mode(const std::string& name);

// Throws SystemError(EOPNOTSUPP) when a forced mode cannot read these files here.
void require_read_mode(ReadMode mode, std::span<const std::shared_ptr<const File>> files);

// True where reads from a disk in this mode are queued rather than made one by one.
bool has_queues(ReadMode mode);

// Memory of a device.
struct DeviceArena {
  int ordinal;
  cuda::DevicePointer base;
};

struct ReadRange {
  const File* file;
  std::uint64_t offset;
  std::uint64_t size;
  std::byte* destination;
  const DeviceArena* arena = nullptr;  // that holds the destination; null for host memory
};

// Extends a range by one that continues it, in the file and in memory. False if that one does not.
bool try_join(ReadRange& range, const ReadRange& next);

// Where a range is known to be; kUnknown asks the page cache.
enum class Source { kUnknown, kCache, kDisk };

// Counts the reads of one piece that are still under way.
struct Ticket {
  std::uint32_t pending = 0;
};

class Reader {
 public:
  // `depth`: how many reads of this thread may be in flight, where the mode has a queue. `size`:
  // the most that one of them asks for.
  Reader(ReadMode mode, unsigned depth, std::uint32_t size);
  // Waits for what is in flight: no destination is written to afterwards.
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Changes both for reads that start from now on.
  void tune(unsigned depth, std::uint32_t size);
  // Starts a range, or reads it at once; the ticket counts what is still to come.
  void submit(const ReadRange& range, Ticket& ticket, Source source = Source::kUnknown);
  // Finishes reads that are complete; with `block`, waits for at least one.
  void reap(bool block);
  unsigned in_flight() const { return in_flight_; }

  std::uint64_t bytes_direct() const { return bytes_direct_; }
  std::uint64_t bytes_buffered() const { return bytes_buffered_; }

 private:
  // One system call's worth: `io_size` bytes at `io_offset`, of which `size` bytes after the
  // first `skip` belong to `destination`. Read in place when `slab` is null.
  struct Operation {
    const File* file = nullptr;
    std::uint64_t io_offset = 0;
    std::uint32_t io_size = 0;
    std::uint32_t skip = 0;
    std::uint32_t size = 0;
    std::byte* destination = nullptr;
    bool bounced = false;
    bool direct = false;
    Ticket* ticket = nullptr;
    AlignedMemory slab;
    std::uint32_t slab_size = 0;
  };

  void read_buffered(const ReadRange& range);
  void read_to_device(const ReadRange& range);
  void read_direct(const ReadRange& range, Ticket& ticket);
  void read_bounced(const ReadRange& range, Ticket& ticket);
  void read_in_place(const ReadRange& range, bool direct, Ticket& ticket);
  bool open_ring();
  bool is_on_disk(const ReadRange& range, Source source) const;
  // Waits for room, then returns a free operation's index.
  std::size_t take_operation();
  void start(std::size_t index);
  void read_now(Operation& operation);
  void finish(Operation& operation, std::int64_t result);
  bool try_complete(Uring::Result& completion, bool block);
  // Finishes one read that is complete, and waits for it where there is none.
  void reap_one();
  void finish_from_ring(std::size_t index, int result);
  void flush();
  void drain() noexcept;

  ReadMode mode_;
  unsigned depth_;
  std::uint32_t size_;
  std::unique_ptr<Uring> ring_;
  bool ring_refused_ = false;
  std::vector<Operation> operations_;
  std::vector<std::size_t> free_;
  unsigned in_flight_ = 0;
  std::uint64_t bytes_direct_ = 0;
  std::uint64_t bytes_buffered_ = 0;
};

}  // namespace sllm::io
