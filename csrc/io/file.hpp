// A data file open for reading: buffered, and directly where the file system allows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "io/descriptor.hpp"
#include "shim/cufile.hpp"

namespace sllm::io {

class File {
 public:
  explicit File(std::string path);

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  int buffered_fd() const { return buffered_.get(); }
  int direct_fd() const { return direct_.get(); }
  // 0 where there are no direct reads.
  std::uint32_t direct_alignment() const { return direct_alignment_; }
  // True once a direct read was refused although the file could be opened for it.
  bool direct_refused() const { return direct_refused_.load(std::memory_order_relaxed); }
  void refuse_direct() const { direct_refused_.store(true, std::memory_order_relaxed); }

  std::uint64_t resident_bytes(std::uint64_t offset, std::uint64_t size) const;
  // True where the page cache is the nearer place to read a range from than the disk. Asking costs
  // about a microsecond for a piece. (A read with RWF_NOWAIT would answer too, but it starts
  // readahead, and the next range of a cold file is then half read twice.)
  bool is_mostly_resident(std::uint64_t offset, std::uint64_t size) const;
  void evict() const;

  // Reads exactly `size` bytes through the page cache, or throws SystemError.
  void read_exactly(std::uint64_t offset, std::byte* destination, std::uint64_t size) const;
  // For reads into device memory, registered at first use. Throws SystemError.
  const cufile::FileHandle& cufile_handle() const;
  // The error of a file that ends before a range that it should hold.
  [[noreturn]] void throw_too_short(std::uint64_t offset, std::uint64_t size) const;

 private:
  void open_direct();

  std::string path_;
  Descriptor buffered_;
  Descriptor direct_;
  std::uint64_t size_ = 0;
  std::uint32_t direct_alignment_ = 0;
  long file_system_ = 0;
  mutable std::atomic<bool> direct_refused_{false};
  mutable std::mutex cufile_mutex_;
  mutable std::unique_ptr<cufile::FileHandle> cufile_handle_;  // of a descriptor above
};

// What statx says of direct I/O on an open file: 0 for none, -1 where the kernel cannot tell.
int query_direct_alignment(int fd);

// True for file systems that live in memory, where direct I/O has no point.
bool is_memory_file_system(long magic);

}  // namespace sllm::io
