#include "codec/block_decoder.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sllm::codec {

#if defined(__x86_64__)

namespace {

constexpr std::size_t kVectorLanes = 8;
constexpr std::size_t kVectors = kLanes / kVectorLanes;

// For each set of lanes: which word goes to which of them, when its lanes take words in order.
using TakerTable = std::array<std::uint64_t, 1 << kVectorLanes>;

constexpr TakerTable make_taker_table() {
  TakerTable table{};
  for (std::size_t takers = 0; takers < table.size(); ++takers) {
    std::uint64_t next = 0;
    for (std::size_t lane = 0; lane < kVectorLanes; ++lane) {
      if ((takers >> lane & 1) != 0) table[takers] |= next++ << (8 * lane);
    }
  }
  return table;
}

constexpr TakerTable kTakers = make_taker_table();

// Moves states by one symbol each, and returns the entries they had. Reads 16 bytes of words.
__attribute__((target("avx2,popcnt"), always_inline)) inline __m256i advance(
    const int* table, __m256i& states, const std::byte*& words) {
  const __m256i slots = _mm256_and_si256(states, _mm256_set1_epi32(kScale - 1));
  const __m256i entries = _mm256_i32gather_epi32(table, slots, 4);
  const __m256i bias =
      _mm256_and_si256(_mm256_srli_epi32(entries, 8), _mm256_set1_epi32(kScale - 1));
  const __m256i x = _mm256_add_epi32(
      _mm256_mullo_epi32(_mm256_srli_epi32(entries, 20), _mm256_srli_epi32(states, kScaleBits)),
      bias);
  const __m256i short_of_bits =
      _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const auto takers = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(short_of_bits)));
  const __m256i next =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
  const __m256i order = _mm256_cvtepu8_epi32(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kTakers.data() + takers)));
  const __m256i refilled =
      _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_permutevar8x32_epi32(next, order));
  states = _mm256_blendv_epi8(x, refilled, short_of_bits);
  words += 2 * static_cast<unsigned>(_mm_popcnt_u32(takers));
  return entries;
}

// The raw bytes of 32 symbols, from their high and low bytes.
__attribute__((target("avx2,popcnt"), always_inline)) inline void join(__m256i high, __m256i low,
                                                                       std::byte* raw) {
  const __m256i a = _mm256_unpacklo_epi8(low, high);
  const __m256i b = _mm256_unpackhi_epi8(low, high);
  const __m256i first = _mm256_permute2x128_si256(a, b, 0x20);
  const __m256i second = _mm256_permute2x128_si256(a, b, 0x31);
  auto* destination = reinterpret_cast<__m256i*>(raw);
  _mm256_storeu_si256(destination,
                      _mm256_or_si256(_mm256_srli_epi16(first, 1), _mm256_slli_epi16(first, 15)));
  _mm256_storeu_si256(destination + 1,
                      _mm256_or_si256(_mm256_srli_epi16(second, 1), _mm256_slli_epi16(second, 15)));
}

__attribute__((target("avx2,popcnt"))) void decode_groups_avx2(const DecodeTable& table,
                                                               BlockCursor& cursor) {
  const auto* entries_of = reinterpret_cast<const int*>(table.data());
  __m256i states[kVectors];
  std::memcpy(states, cursor.states.data(), sizeof(states));
  const std::byte* words = cursor.words;
  while (cursor.groups != 0 &&
         static_cast<std::size_t>(cursor.words_end - words) >= kGroupWordsBytes) {
    __m256i symbols[kVectors]{};
    for (std::size_t k = 0; k < kLaneSymbols; ++k) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        const __m256i entries = advance(entries_of, states[v], words);
        symbols[v] =
            _mm256_or_si256(_mm256_srli_epi32(symbols[v], 8), _mm256_slli_epi32(entries, 24));
      }
    }
    for (std::size_t v = 0; v < kVectors; ++v) {
      const std::byte* low = cursor.low + 32 * v;
      join(symbols[v], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)),
           cursor.raw + 64 * v);
    }
    cursor.low += kGroupSymbols;
    cursor.raw += 2 * kGroupSymbols;
    --cursor.groups;
  }
  std::memcpy(cursor.states.data(), states, sizeof(states));
  cursor.words = words;
}

}  // namespace

DecodeGroups fastest_decode_groups() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
  return avx2 ? decode_groups_avx2 : decode_groups_portable;
}

#else

DecodeGroups fastest_decode_groups() {
  return decode_groups_portable;
}

#endif

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
        const std::uint32_t short_of_bits = x < kLowerBound ? 1 : 0;  // a branch would be guessed
        const std::uint32_t word = load<std::uint16_t>(words) & (0 - short_of_bits);
        states[lane] = x << (16 * short_of_bits) | word;
        words += 2 * short_of_bits;
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

}  // namespace sllm::codec
