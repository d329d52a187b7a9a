#include <algorithm>
#include <array>
#include <cerrno>
#include <string>

#include "codec/block_decoder.hpp"
#include "codec/codec.hpp"
#include "codec/segment_layout.hpp"
#include "io/errors.hpp"

namespace sllm::codec {
namespace {

[[noreturn]] void throw_corrupt(const std::string& what) {
  throw SystemError(EBADMSG, "a coded segment is corrupt: " + what);
}

SegmentHeader checked_header(std::span<const std::byte> stored, const SegmentShape& shape) {
  if (shape.raw_size > kSegmentBytes || stored.size() < shape.streams_offset()) {
    throw_corrupt(std::to_string(stored.size()) + " bytes cannot hold " +
                  std::to_string(shape.raw_size));
  }
  const auto header = load<SegmentHeader>(stored.data());
  if (header.magic != kMagic) throw_corrupt("it does not begin as a segment does");
  if (header.raw_size != shape.raw_size) {
    throw_corrupt("it holds " + std::to_string(header.raw_size) + " bytes, not " +
                  std::to_string(shape.raw_size));
  }
  std::size_t at = shape.streams_offset();
  for (std::size_t block = 0; block < shape.blocks; ++block) {
    const std::size_t end = header.block_ends[block];
    if (end < at + kStatesBytes || end > stored.size() || end % sizeof(std::uint32_t) != 0) {
      throw_corrupt("block " + std::to_string(block) + " ends at " + std::to_string(end));
    }
    at = end;
  }
  if (at != stored.size()) {
    throw_corrupt("it ends at " + std::to_string(at) + ", not " + std::to_string(stored.size()));
  }
  return header;
}

void fill_table(const SegmentHeader& header, DecodeTable& table) {
  std::uint32_t slot = 0;
  for (std::uint32_t symbol = 0; symbol < kSymbolValues; ++symbol) {
    const std::uint32_t frequency = header.frequencies[symbol];
    if (frequency >= kScale || frequency > kScale - slot) throw_corrupt("its frequencies");
    for (std::uint32_t bias = 0; bias < frequency; ++bias) {
      table[slot++] = table_entry(frequency, bias, symbol);
    }
  }
  if (slot != kScale) throw_corrupt("its frequencies");
}

// The last groups of a block: the words that are left, then zeros, so that what a group may read is
// there. Groups whose output is not wholly wanted go through memory of their own too.
class BlockDecoder {
 public:
  BlockDecoder(const DecodeTable& table, DecodeGroups decode_groups)
      : table_(table), decode_groups_(decode_groups) {}

  void decode(std::span<const std::byte> stream, const std::byte* low, std::span<std::byte> raw) {
    BlockCursor cursor{load<States>(stream.data()),
                       stream.data() + kStatesBytes,
                       stream.data() + stream.size(),
                       low,
                       raw.data(),
                       raw.size() / (2 * kGroupSymbols)};
    decode_groups_(table_, cursor);
    while (cursor.groups != 0) decode_group(cursor);
    if (const std::size_t rest = raw.size() % (2 * kGroupSymbols); rest != 0) {
      std::array<std::byte, 2 * kGroupSymbols> group;
      std::byte* const destination = cursor.raw;
      cursor.raw = group.data();
      decode_group(cursor);
      std::memcpy(destination, group.data(), rest);
    }
    const auto left = cursor.words_end - cursor.words;
    const bool padded = left == 2 && load<std::uint16_t>(cursor.words) == 0;
    for (const std::uint32_t state : cursor.states) {
      if (state != kLowerBound || (left != 0 && !padded)) throw_corrupt("its words");
    }
  }

 private:
  void decode_group(BlockCursor& cursor) {
    std::array<std::byte, kGroupWordsBytes> padded{};
    const auto left = static_cast<std::size_t>(cursor.words_end - cursor.words);
    std::memcpy(padded.data(), cursor.words, std::min(left, padded.size()));
    BlockCursor one = cursor;
    one.words = padded.data();
    one.words_end = padded.data() + padded.size();
    one.groups = 1;
    decode_groups_(table_, one);
    const auto used = static_cast<std::size_t>(one.words - padded.data());
    if (used > left) throw_corrupt("its words end too soon");
    one.words = cursor.words + used;
    one.words_end = cursor.words_end;
    one.groups = cursor.groups - (cursor.groups != 0 ? 1 : 0);
    cursor = one;
  }

  const DecodeTable& table_;
  DecodeGroups decode_groups_;
};

}  // namespace

void decode_segment_with(DecodeGroups decode_groups, std::span<const std::byte> stored,
                         std::span<std::byte> raw) {
  const SegmentShape shape(raw.size());
  const SegmentHeader header = checked_header(stored, shape);
  DecodeTable table;
  fill_table(header, table);
  BlockDecoder decoder(table, decode_groups);
  const std::byte* const low = stored.data() + sizeof(SegmentHeader);
  std::size_t at = shape.streams_offset();
  for (std::size_t block = 0; block < shape.blocks; ++block) {
    const std::size_t first = block * kBlockSymbols;
    decoder.decode(stored.subspan(at, header.block_ends[block] - at), low + first,
                   raw.subspan(2 * first, 2 * shape.block_symbols(block)));
    at = header.block_ends[block];
  }
  if (raw.size() % 2 != 0) raw.back() = low[shape.symbols];
}

void decode_segment(std::span<const std::byte> stored, std::span<std::byte> raw) {
  static const DecodeGroups decode_groups = fastest_decode_groups();
  decode_segment_with(decode_groups, stored, raw);
}

}  // namespace sllm::codec
