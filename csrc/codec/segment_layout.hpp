// Where things are in a coded segment, for those who write and read one. See docs/codec.md.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "codec/codec.hpp"

namespace sllm::codec {

static_assert(std::endian::native == std::endian::little, "segments are little-endian");

inline constexpr std::uint32_t kMagic = 0x31524C53;  // "SLR1"
inline constexpr std::size_t kSymbolValues = 256;
inline constexpr unsigned kScaleBits = 12;  // frequencies sum to 1 << kScaleBits
inline constexpr std::uint32_t kScale = 1U << kScaleBits;
inline constexpr std::size_t kLanes = 32;
inline constexpr std::uint32_t kLowerBound = 1U << 16;  // of a state between two symbols
inline constexpr std::size_t kBlockSymbols = 16384;
// Lane l of a group has its symbols 4 l to 4 l + 3, one an iteration: what a lane has decoded after
// four is contiguous.
inline constexpr std::size_t kLaneSymbols = 4;
inline constexpr std::size_t kGroupSymbols = kLanes * kLaneSymbols;
inline constexpr std::size_t kBlocksMax = kSegmentBytes / 2 / kBlockSymbols;
inline constexpr std::size_t kStatesBytes = kLanes * sizeof(std::uint32_t);

struct SegmentHeader {
  std::uint32_t magic;
  std::uint32_t raw_size;
  std::array<std::uint16_t, kSymbolValues> frequencies;
  std::array<std::uint32_t, kBlocksMax> block_ends;  // from the segment's start
  std::array<std::byte, 120> zeros;                  // so that the low bytes start a cache line
};
static_assert(sizeof(SegmentHeader) == 768);

constexpr std::size_t round_up(std::size_t size, std::size_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

// What follows from the size of a segment's raw bytes.
struct SegmentShape {
  explicit constexpr SegmentShape(std::size_t raw_size)
      : raw_size(raw_size),
        symbols(raw_size / 2),
        blocks(round_up(symbols, kBlockSymbols) / kBlockSymbols),
        low_size(round_up(raw_size - symbols, kGroupSymbols)) {}

  constexpr std::size_t block_symbols(std::size_t block) const {
    return std::min(symbols - block * kBlockSymbols, kBlockSymbols);
  }
  constexpr std::size_t streams_offset() const { return sizeof(SegmentHeader) + low_size; }

  std::size_t raw_size;
  std::size_t symbols;  // two bytes each; an odd last byte is kept after the low bytes
  std::size_t blocks;
  std::size_t low_size;  // with the padding
};

template <typename Value>
Value load(const std::byte* bytes) {
  Value value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

template <typename Value>
void store(std::byte* bytes, Value value) {
  std::memcpy(bytes, &value, sizeof(value));
}

}  // namespace sllm::codec
