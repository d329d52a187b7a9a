// Where a staging slot holds the coded segments of a batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "shim/cuda_driver.hpp"

namespace sllm::lanes {

// A coded segment in host memory, and where on the device it is decoded to.
struct CodedSegment {
  const std::byte* stored;
  cuda::DevicePointer raw;
  std::uint32_t stored_size;
  std::uint32_t raw_size;
};

// What is staged begins at multiples of this.
inline constexpr std::uint64_t kSlotAlignment = 256;

constexpr std::uint64_t padded(std::uint64_t size) {
  return (size + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

struct SlotLayout {
  // Neighbouring segments travel as one copy, with the little that is between them.
  struct Run {
    const std::byte* source;
    std::uint64_t offset;
    std::uint64_t size;
  };

  std::vector<Run> runs;
  std::vector<std::uint64_t> offsets;  // of the segments that fit, in the slot
  std::uint64_t size = 0;
};

// Lays out as many of the segments as fit, from the first on; the first must fit.
SlotLayout plan_slot(std::span<const CodedSegment> segments, std::uint64_t capacity);

}  // namespace sllm::lanes
