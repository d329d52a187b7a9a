// Page-aligned scratch memory for direct I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace sllm::io {

inline constexpr std::size_t kPageSize = 4096;

struct FreeAligned {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedMemory = std::unique_ptr<std::byte[], FreeAligned>;

inline AlignedMemory allocate_aligned(std::size_t size) {
  const std::size_t rounded = (size + kPageSize - 1) / kPageSize * kPageSize;
  void* memory = std::aligned_alloc(kPageSize, rounded);
  if (memory == nullptr) throw std::bad_alloc();
  return AlignedMemory(static_cast<std::byte*>(memory));
}

inline std::uint64_t align_down(std::uint64_t value, std::uint64_t alignment) {
  return value / alignment * alignment;
}

inline std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return align_down(value + alignment - 1, alignment);
}

}  // namespace sllm::io
