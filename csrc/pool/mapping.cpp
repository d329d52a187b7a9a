#include "pool/mapping.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "io/aligned_memory.hpp"
#include "io/control.hpp"
#include "io/errors.hpp"
#include "io/transfer_plan.hpp"
#include "io/worker_group.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace sllm::pool {
namespace {

constexpr std::size_t kPopulateSize = 8 << 20;  // so that a small ring takes many threads too
constexpr int kRefusalsMax = 64;                // of huge pages, before no more are asked for

// For kernels before 5.14: an atomic write that leaves the value as it was.
void touch(std::byte* address, std::size_t size) {
  for (std::size_t at = 0; at < size; at += io::kPageSize) {
    auto* word = reinterpret_cast<unsigned*>(address + at);
    std::atomic_ref<unsigned>(*word).fetch_or(0, std::memory_order_relaxed);
  }
}

void populate_part(std::byte* address, std::size_t size) {
  int result = 0;
  do {
    result = ::madvise(address, size, MADV_POPULATE_WRITE);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  if (result == 0) return;
  if (errno == EINVAL) {
    touch(address, size);
  } else {
    const int code = errno == EFAULT ? ENOMEM : errno;
    throw_system_error(code, "cannot populate " + std::to_string(size) + " bytes of memory");
  }
}

// Shared memory gets huge pages only from kernels that are set up so, unless small ones are
// collapsed (since Linux 6.1). One page has to be there; all others are then never faulted in.
class HugePages {
 public:
  void try_populate(std::byte* address, std::size_t size) {
    for (std::size_t at = 0; at + kHugePageSize <= size; at += kHugePageSize) {
      if (refusals_.load(std::memory_order_relaxed) >= kRefusalsMax) return;
      populate_part(address + at, io::kPageSize);
      if (::madvise(address + at, kHugePageSize, MADV_COLLAPSE) == 0) continue;
      refusals_.fetch_add(1, std::memory_order_relaxed);
    }
  }

 private:
  std::atomic<int> refusals_ = 0;
};

template <typename PopulatePart>
void populate_parts(const Mapping& mapping, std::int64_t threads, PopulatePart populate) {
  const unsigned thread_count = io::checked_threads(threads);
  io::Control control;
  io::ItemClaims claims((mapping.size() + kPopulateSize - 1) / kPopulateSize, control);
  io::run_workers(thread_count, claims, control, [&](io::ItemClaims& items) {
    for (std::size_t item = 0; items.try_claim(item);) {
      const std::size_t offset = item * kPopulateSize;
      populate(mapping.address() + offset, std::min(kPopulateSize, mapping.size() - offset));
    }
  });
}

}  // namespace

Mapping::~Mapping() {
  if (address_ != nullptr) ::munmap(address_, size_);
}

Mapping reserve_address_space(std::size_t size) {
  const std::size_t padded = size + kHugePageSize;
  void* memory =
      ::mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw_system_error(errno, "cannot map " + std::to_string(size) + " bytes");
  }
  auto* start = static_cast<std::byte*>(memory);
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::size_t head = io::align_up(address, kHugePageSize) - address;
  if (head != 0) ::munmap(start, head);
  if (padded - head - size != 0) ::munmap(start + head + size, padded - head - size);
  return Mapping(start + head, size);
}

std::size_t whole_pages(std::int64_t size) {
  constexpr std::int64_t kSizeMax = std::int64_t{1} << 46;
  if (size < 1 || size > kSizeMax) {
    throw std::invalid_argument("a size of " + std::to_string(size) + " bytes is out of range");
  }
  return io::align_up(static_cast<std::uint64_t>(size), io::kPageSize);
}

void populate(const Mapping& mapping, std::int64_t threads) {
  populate_parts(mapping, threads, populate_part);
}

void populate_shared(const Mapping& mapping, std::int64_t threads) {
  HugePages huge;
  populate_parts(mapping, threads, [&](std::byte* address, std::size_t size) {
    huge.try_populate(address, size);
    populate_part(address, size);
  });
}

}  // namespace sllm::pool
