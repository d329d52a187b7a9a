// Asymmetric numeral systems, range variant (Duda 2013), with interleaved states (Giesen 2014).
#include <algorithm>
#include <array>
#include <memory>
#include <stdexcept>
#include <string>

#include "codec/codec.hpp"
#include "codec/frequencies.hpp"
#include "codec/segment_layout.hpp"
#include "io/transfer_plan.hpp"
#include "io/worker_group.hpp"

namespace sllm::codec {
namespace {

// Of a sixteenth: what decoding must save to be worth its while.
constexpr std::size_t kSavingDivisor = 16;

// Coding a symbol takes a state x to x / f * 4096 + x % f + start. With r = ceil(2^44 / f) the
// quotient is x * r >> 44: f < 2^12 and x < f * 2^20, so the product fits 64 bits, and r's error,
// less than 1, adds less than x * f <= 2^44 to x * 2^44 / f * f: never enough for the next integer.
struct Coding {
  std::uint64_t reciprocal;
  std::uint32_t limit;  // a state from here on gives off a word first
  std::uint16_t start;
  std::uint16_t complement;  // 4096 - f
};
using Codings = std::array<Coding, kSymbolValues>;
constexpr unsigned kReciprocalBits = 44;

Codings make_codings(const Frequencies& frequencies) {
  Codings codings{};
  std::uint32_t start = 0;
  for (std::size_t value = 0; value < kSymbolValues; ++value) {
    const std::uint32_t f = frequencies[value];
    if (f == 0) continue;
    codings[value] = {((std::uint64_t{1} << kReciprocalBits) + f - 1) / f, f << (32 - kScaleBits),
                      static_cast<std::uint16_t>(start), static_cast<std::uint16_t>(kScale - f)};
    start += f;
  }
  return codings;
}

// Each word rotated left by one: its high byte to `symbols`, its low byte to `low`.
void split(std::span<const std::byte> raw, std::byte* symbols, std::byte* low) {
  for (std::size_t i = 0; i < raw.size() / 2; ++i) {
    const auto word = load<std::uint16_t>(raw.data() + 2 * i);
    symbols[i] = static_cast<std::byte>(word >> 7);
    low[i] = static_cast<std::byte>(word << 1 | word >> 15);
  }
}

// Writes a block's words from `end` downwards, as a decoder will read them upwards, and its states
// before them. A word a symbol is the most there can be. Returns the block's first byte.
std::byte* encode_block(const std::byte* symbols, std::size_t count, const Codings& codings,
                        std::byte* end) {
  std::array<std::uint32_t, kLanes> states;
  states.fill(kLowerBound);
  for (const std::byte* group = symbols + count; group != symbols;) {
    group -= kGroupSymbols;
    for (std::size_t k = kLaneSymbols; k-- != 0;) {
      for (std::size_t lane = kLanes; lane-- != 0;) {
        const Coding& coding =
            codings[std::to_integer<std::size_t>(group[lane * kLaneSymbols + k])];
        std::uint32_t x = states[lane];
        const std::uint32_t full = x >= coding.limit ? 1 : 0;  // a branch would be guessed wrong
        store(end - 2, static_cast<std::uint16_t>(x));
        end -= 2 * full;
        x >>= 16 * full;
        const auto quotient = static_cast<std::uint32_t>(x * coding.reciprocal >> kReciprocalBits);
        states[lane] = x + coding.start + quotient * coding.complement;
      }
    }
  }
  end -= kStatesBytes;
  std::memcpy(end, states.data(), kStatesBytes);
  return end;
}

struct Scratch {
  std::array<std::byte, kSegmentBytes / 2 + kGroupSymbols> symbols;
  std::array<std::byte, 2 + 2 * kBlockSymbols + kStatesBytes> stream;
};

}  // namespace

std::size_t encode_segment(std::span<const std::byte> raw, std::span<std::byte> stored) {
  if (raw.size() > kSegmentBytes || stored.size() < raw.size()) {
    throw std::invalid_argument("a segment of " + std::to_string(raw.size()) +
                                " bytes, with room for " + std::to_string(stored.size()) +
                                ": it has " + std::to_string(kSegmentBytes) +
                                " at most, and needs room for all");
  }
  const SegmentShape shape(raw.size());
  const std::size_t limit = raw.size() - raw.size() / kSavingDivisor;
  if (shape.symbols == 0 || shape.streams_offset() >= limit) return 0;

  const auto scratch = std::make_unique_for_overwrite<Scratch>();
  std::byte* const symbols = scratch->symbols.data();
  std::byte* const low = stored.data() + sizeof(SegmentHeader);
  split(raw, symbols, low);
  if (raw.size() % 2 != 0) low[shape.symbols] = raw.back();
  std::fill(low + raw.size() - shape.symbols, low + shape.low_size, std::byte{0});

  SegmentHeader header{};
  header.magic = kMagic;
  header.raw_size = static_cast<std::uint32_t>(raw.size());
  const Counts counts = count_symbols({symbols, shape.symbols});
  header.frequencies = scale_frequencies(counts);
  const double estimate = coded_bytes(counts, header.frequencies);
  if (static_cast<double>(shape.streams_offset()) + estimate > static_cast<double>(limit)) return 0;

  const auto commonest = std::max_element(counts.begin(), counts.end()) - counts.begin();
  std::fill(symbols + shape.symbols, symbols + round_up(shape.symbols, kGroupSymbols),
            static_cast<std::byte>(commonest));
  const Codings codings = make_codings(header.frequencies);
  std::size_t at = shape.streams_offset();
  for (std::size_t block = 0; block < shape.blocks; ++block) {
    std::byte* const end = scratch->stream.data() + scratch->stream.size();
    const std::byte* const begin =
        encode_block(symbols + block * kBlockSymbols,
                     round_up(shape.block_symbols(block), kGroupSymbols), codings, end);
    const auto size = static_cast<std::size_t>(end - begin);
    const std::size_t padded = round_up(size, sizeof(std::uint32_t));
    if (at + padded > limit) return 0;
    std::copy(begin, static_cast<const std::byte*>(end), stored.data() + at);
    std::fill(stored.data() + at + size, stored.data() + at + padded, std::byte{0});
    at += padded;
    header.block_ends[block] = static_cast<std::uint32_t>(at);
  }
  store(stored.data(), header);
  return at;
}

std::vector<std::size_t> encode_segments(std::span<const EncodePiece> pieces, std::int64_t threads,
                                         io::Control& control) {
  const unsigned thread_count = io::checked_threads(threads);
  control.throw_if_cancelled();
  std::vector<std::size_t> sizes(pieces.size());
  io::ItemClaims claims(pieces.size(), control);
  io::run_workers(thread_count, claims, control, [&](io::ItemClaims& items) {
    for (std::size_t item = 0; items.try_claim(item);) {
      const auto [raw, stored] = pieces[item];
      sizes[item] = encode_segment(raw, {stored, raw.size()});
      control.add_bytes(raw.size());
    }
  });
  return sizes;
}

}  // namespace sllm::codec
