// Host memory: anonymous, shared between processes, and the other process's view of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "io/descriptor.hpp"
#include "pool/mapping.hpp"
#include "shim/cuda_device.hpp"

namespace sllm::pool {

class HostBuffer {
 public:
  HostBuffer(std::int64_t size, bool pinned);

  std::byte* address() const { return mapping_.address(); }
  std::size_t size() const { return size_; }
  void populate(std::int64_t threads) const { pool::populate(mapping_, threads); }

 private:
  std::size_t size_;
  Mapping mapping_;
  std::unique_ptr<cuda::HostRegistration> registration_;  // ends before the mapping
};

class SharedPool {
 public:
  explicit SharedPool(std::int64_t size);

  std::byte* address() const { return mapping_.address(); }
  std::size_t size() const { return size_; }
  bool pinned() const;
  // A descriptor through which nobody can write; the caller closes it.
  int read_only_fd() const;
  void populate(std::int64_t threads) const { populate_shared(mapping_, threads); }
  void pin();

 private:
  std::size_t size_;
  Descriptor memory_;
  Mapping mapping_;
  mutable std::mutex mutex_;  // of the registration
  std::unique_ptr<cuda::HostRegistration> registration_;
};

// The lease, a socket to the pool's owner, is closed only after the memory is unmapped: as long as
// it is open, the owner leaves the chunks alone. Here it is a duplicate; the caller keeps its own.
class PoolMapping {
 public:
  PoolMapping(int fd, std::int64_t chunk_size, const std::vector<std::int64_t>& chunks,
              std::int64_t size, int lease = -1);

  std::byte* address() const { return mapping_.address(); }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  Descriptor lease_;
  Mapping mapping_;
};

}  // namespace sllm::pool
