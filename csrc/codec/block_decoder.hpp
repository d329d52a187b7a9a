// The inner loop of decoding on the CPU, in the ways that processors allow.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/segment_layout.hpp"

namespace sllm::codec {

// By the low bits of a state: the symbol's frequency (12 bits), how far the slot is from the
// symbol's first (12 bits), and the symbol (8 bits).
using DecodeTable = std::array<std::uint32_t, kScale>;

constexpr std::uint32_t table_entry(std::uint32_t frequency, std::uint32_t bias,
                                    std::uint32_t symbol) {
  return frequency << 20 | bias << 8 | symbol;
}

using States = std::array<std::uint32_t, kLanes>;

// What a group of symbols reads of the words at most.
inline constexpr std::size_t kGroupWordsBytes = 2 * kGroupSymbols;

// Where a block's decoding is. All pointers may be unaligned.
struct BlockCursor {
  States states;
  const std::byte* words;
  const std::byte* words_end;
  const std::byte* low;
  std::byte* raw;
  std::size_t groups;  // that are left
};

// Decodes groups until none is left, or fewer than kGroupWordsBytes of words are.
using DecodeGroups = void (*)(const DecodeTable&, BlockCursor&);

void decode_groups_portable(const DecodeTable& table, BlockCursor& cursor);

// The fastest that this processor can run.
DecodeGroups fastest_decode_groups();

// decode_segment in a given way.
void decode_segment_with(DecodeGroups decode_groups, std::span<const std::byte> stored,
                         std::span<std::byte> raw);

}  // namespace sllm::codec
