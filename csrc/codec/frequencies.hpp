// How often each symbol occurs in a segment, and the 12-bit frequencies that it is coded with.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/segment_layout.hpp"

namespace sllm::codec {

using Counts = std::array<std::uint32_t, kSymbolValues>;
using Frequencies = std::array<std::uint16_t, kSymbolValues>;

Counts count_symbols(std::span<const std::byte> symbols);

// Frequencies that sum to kScale: at least 1 for a symbol that occurs, at most kScale - 1 for any,
// so that all fit twelve bits. There is at least one symbol.
Frequencies scale_frequencies(const Counts& counts);

// What the symbols take at least when coded with these frequencies, in bytes.
double coded_bytes(const Counts& counts, const Frequencies& frequencies);

}  // namespace sllm::codec
