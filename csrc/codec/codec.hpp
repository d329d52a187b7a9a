// The lossless codec of 16-bit floats: their exponents are entropy-coded, all else is kept as it
// is. docs/codec.md is the specification; what is coded is a segment, which is decoded by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "io/control.hpp"

namespace sllm::codec {

// What one segment holds at most, before coding.
inline constexpr std::size_t kSegmentBytes = 1 << 20;

// Codes a segment into `stored`, which has room for as many bytes as `raw` has. Returns the coded
// size, or 0 where coding does not save a sixteenth; `stored` holds nothing of use then. Throws
// std::invalid_argument for more than kSegmentBytes.
std::size_t encode_segment(std::span<const std::byte> raw, std::span<std::byte> stored);

// Throws SystemError (EBADMSG) unless `stored` is one whole coded segment of raw.size() bytes.
// Nothing outside of `raw` is ever written, whatever `stored` holds.
void decode_segment(std::span<const std::byte> stored, std::span<std::byte> raw);

struct EncodePiece {
  std::span<const std::byte> raw;
  std::byte* stored;  // as many bytes as raw
};

// Codes pieces with several threads; returns encode_segment's answer for each.
std::vector<std::size_t> encode_segments(std::span<const EncodePiece> pieces, std::int64_t threads,
                                         io::Control& control);

}  // namespace sllm::codec
