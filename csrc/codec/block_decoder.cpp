#include "codec/block_decoder.hpp"

namespace sllm::codec {

void decode_groups_portable(const DecodeTable& table, BlockCursor& cursor) {
  States states = cursor.states;
  const std::byte* words = cursor.words;
  while (cursor.groups != 0 &&
         static_cast<std::size_t>(cursor.words_end - words) >= kGroupWordsBytes) {
    States symbols{};
    for (std::size_t k = 0; k < kLaneSymbols; ++k) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        std::uint32_t x = states[lane];
        const std::uint32_t entry = table[x % kScale];
        x = (entry >> 20) * (x >> kScaleBits) + (entry >> 8) % kScale;
        const bool short_of_bits = x < kLowerBound;
        const std::uint32_t refilled = x << 16 | load<std::uint16_t>(words);
        words += short_of_bits ? 2 : 0;
        states[lane] = short_of_bits ? refilled : x;
        symbols[lane] = symbols[lane] >> 8 | entry << 24;
      }
    }
    for (std::size_t i = 0; i < kGroupSymbols; ++i) {
      const std::uint32_t high = symbols[i / kLaneSymbols] >> (8 * (i % kLaneSymbols)) & 0xFF;
      const std::uint32_t rotated = high << 8 | std::to_integer<std::uint32_t>(cursor.low[i]);
      store(cursor.raw + 2 * i, static_cast<std::uint16_t>(rotated >> 1 | rotated << 15));
    }
    cursor.low += kGroupSymbols;
    cursor.raw += 2 * kGroupSymbols;
    --cursor.groups;
  }
  cursor.states = states;
  cursor.words = words;
}

DecodeGroups fastest_decode_groups() {
  return decode_groups_portable;
}

}  // namespace sllm::codec
