#include "pool/host_memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string>
#include <thread>

#include "io/aligned_memory.hpp"
#include "io/errors.hpp"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace sllm::pool {
namespace {

constexpr unsigned kPinThreadsMax = 16;
// Of an H200's host: 4 threads populate 128 MiB in 7.5 ms and 16 in 20, and whatever else in the
// process wants memory meanwhile waits for them.
constexpr std::size_t kPinBytesPerThread = 32 << 20;

void map_fixed(std::byte* address, std::size_t size, int flags, int fd, std::uint64_t offset) {
  void* mapped = ::mmap(address, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd,
                        static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) {
    throw_system_error(errno, "cannot map " + std::to_string(size) + " bytes");
  }
}

// Advice only: where huge pages are off, small ones serve.
void prefer_huge_pages(const Mapping& mapping) {
  static_cast<void>(::madvise(mapping.address(), mapping.size(), MADV_HUGEPAGE));
}

// Registering memory that is not there yet faults it in one page at a time, ten times slower.
template <typename Populate>
std::unique_ptr<cuda::HostRegistration> pin_memory(const Mapping& mapping, Populate populate) {
  static_cast<void>(cuda::driver());  // fail before any memory is taken
  const unsigned threads_max = std::clamp(std::thread::hardware_concurrency(), 1U, kPinThreadsMax);
  const std::size_t threads = mapping.size() / kPinBytesPerThread;
  populate(mapping, static_cast<std::int64_t>(std::clamp<std::size_t>(threads, 1, threads_max)));
  return std::make_unique<cuda::HostRegistration>(mapping.address(), mapping.size());
}

Descriptor create_sealed_memory(std::size_t size) {
  Descriptor memory(::memfd_create("sllm-store-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.valid()) throw_system_error(errno, "memfd_create");
  if (::ftruncate(memory.get(), static_cast<off_t>(size)) != 0) {
    throw_system_error(errno, "cannot size a pool of " + std::to_string(size) + " bytes");
  }
  if (::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    throw_system_error(errno, "cannot seal the pool's size");
  }
  return memory;
}

std::uint64_t check_chunks(int fd, std::int64_t chunk_size, const std::vector<std::int64_t>& chunks,
                           std::int64_t size) {
  if (chunk_size < 1 || static_cast<std::uint64_t>(chunk_size) % io::kPageSize != 0) {
    throw std::invalid_argument("chunk_size " + std::to_string(chunk_size) +
                                " is not a multiple of the page size");
  }
  const auto count = static_cast<std::int64_t>(chunks.size());
  struct stat status{};
  if (::fstat(fd, &status) != 0) throw_system_error(errno, "cannot use the pool's descriptor");
  if (size < 1 || count > status.st_size / chunk_size + 1 || size > count * chunk_size) {
    throw std::invalid_argument("size " + std::to_string(size) + " does not fit " +
                                std::to_string(count) + " chunks");
  }
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    throw SystemError(EPERM, "the pool could shrink under the mapping: it is not sealed");
  }
  const std::int64_t available = status.st_size / chunk_size;
  for (const std::int64_t chunk : chunks) {
    if (chunk < 0 || chunk >= available) {
      throw std::invalid_argument("there is no chunk " + std::to_string(chunk) + " among " +
                                  std::to_string(available));
    }
  }
  return static_cast<std::uint64_t>(count * chunk_size);
}

}  // namespace

HostBuffer::HostBuffer(std::int64_t size, bool pinned)
    : size_(static_cast<std::size_t>(size)), mapping_(reserve_address_space(whole_pages(size))) {
  map_fixed(mapping_.address(), mapping_.size(), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  prefer_huge_pages(mapping_);
  if (pinned) registration_ = pin_memory(mapping_, pool::populate);
}

SharedPool::SharedPool(std::int64_t size)
    : size_(static_cast<std::size_t>(size)),
      memory_(create_sealed_memory(whole_pages(size))),
      mapping_(reserve_address_space(whole_pages(size))) {
  map_fixed(mapping_.address(), mapping_.size(), MAP_SHARED, memory_.get(), 0);
  prefer_huge_pages(mapping_);
  // From here on this mapping is the only way to write, even for who reopens the descriptor.
  // Kernels before 5.1 lack the seal and rely on the descriptor being read-only.
  static_cast<void>(::fcntl(memory_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
  if (::fcntl(memory_.get(), F_ADD_SEALS, F_SEAL_SEAL) != 0) {
    throw_system_error(errno, "cannot seal the pool");
  }
}

bool SharedPool::pinned() const {
  std::lock_guard lock(mutex_);
  return registration_ != nullptr;
}

int SharedPool::read_only_fd() const {
  const std::string path = "/proc/self/fd/" + std::to_string(memory_.get());
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_system_error(errno, "cannot reopen the pool read-only", path);
  return fd;
}

void SharedPool::pin() {
  std::lock_guard lock(mutex_);
  if (registration_ == nullptr) registration_ = pin_memory(mapping_, populate_shared);
}

PoolMapping::PoolMapping(int fd, std::int64_t chunk_size, const std::vector<std::int64_t>& chunks,
                         std::int64_t size, int lease)
    : size_(static_cast<std::size_t>(size)),
      lease_(duplicate(lease)),
      mapping_(reserve_address_space(check_chunks(fd, chunk_size, chunks, size))) {
  const auto chunk_bytes = static_cast<std::size_t>(chunk_size);
  for (std::size_t first = 0; first < chunks.size();) {
    std::size_t count = 1;
    while (first + count < chunks.size() &&
           chunks[first + count] == chunks[first] + static_cast<std::int64_t>(count)) {
      ++count;
    }
    map_fixed(mapping_.address() + first * chunk_bytes, count * chunk_bytes,
              MAP_PRIVATE | MAP_NORESERVE, fd,
              static_cast<std::uint64_t>(chunks[first]) * chunk_bytes);
    first += count;
  }
}

}  // namespace sllm::pool
