// Page-aligned scratch memory for direct I/O.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace sllm::io {

inline constexpr std::size_t kPageSize = 4096;
// Memory from half of that on is in huge pages, where the system has them: to a disk, a request
// into 256 scattered pages is several requests.
inline constexpr std::size_t kHugePageSize = 2 << 20;

struct FreeAligned {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<std::byte[], FreeAligned>;

inline AlignedMemory allocate_aligned(std::size_t size) {
  const bool huge = size >= kHugePageSize / 2;
  const std::size_t alignment = huge ? kHugePageSize : kPageSize;
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  if (huge) static_cast<void>(::madvise(memory, rounded, MADV_HUGEPAGE));
  return AlignedMemory(static_cast<std::byte*>(memory));
}

inline std::uint64_t align_down(std::uint64_t value, std::uint64_t alignment) {
  return value / alignment * alignment;
}

inline std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return align_down(value + alignment - 1, alignment);
}

}  // namespace sllm::io
