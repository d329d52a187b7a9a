#include "codec/frequencies.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace sllm::codec {

Counts count_symbols(std::span<const std::byte> symbols) {
  // Equal neighbours are common; with one table each would wait for the one before.
  std::array<Counts, 4> tables{};
  std::size_t at = 0;
  for (; at + 8 <= symbols.size(); at += 8) {
    const auto word = load<std::uint64_t>(symbols.data() + at);
    for (unsigned k = 0; k < 8; ++k) ++tables[k % 4][(word >> (8 * k)) & 0xFF];
  }
  for (; at < symbols.size(); ++at) ++tables[0][std::to_integer<std::size_t>(symbols[at])];
  Counts counts{};
  for (std::size_t value = 0; value < kSymbolValues; ++value) {
    for (const Counts& table : tables) counts[value] += table[value];
  }
  return counts;
}

Frequencies scale_frequencies(const Counts& counts) {
  const auto total = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  Frequencies frequencies{};
  std::uint32_t sum = 0;
  for (std::size_t value = 0; value < kSymbolValues; ++value) {
    if (counts[value] == 0) continue;
    const std::uint64_t nearest = (std::uint64_t{counts[value]} * kScale + total / 2) / total;
    frequencies[value] =
        static_cast<std::uint16_t>(std::clamp<std::uint64_t>(nearest, 1, kScale - 1));
    sum += frequencies[value];
  }
  // Rounding leaves a few too many or too few; the commonest symbol feels them least.
  const auto commonest = [&] { return std::max_element(frequencies.begin(), frequencies.end()); };
  for (; sum > kScale; --sum) --*commonest();
  if (*commonest() + kScale - sum < kScale) {
    *commonest() = static_cast<std::uint16_t>(*commonest() + kScale - sum);
    return frequencies;
  }
  // There is one symbol only: a neighbour that never occurs takes what it cannot have.
  const auto only = static_cast<std::size_t>(commonest() - frequencies.begin());
  frequencies[only] = kScale - 1;
  frequencies[only ^ 1] = 1;
  return frequencies;
}

double coded_bytes(const Counts& counts, const Frequencies& frequencies) {
  double bits = 0;
  for (std::size_t value = 0; value < kSymbolValues; ++value) {
    if (counts[value] != 0) bits += counts[value] * (kScaleBits - std::log2(frequencies[value]));
  }
  return bits / 8;
}

}  // namespace sllm::codec
