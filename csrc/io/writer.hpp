// Writes one new file in whole aligned blocks, by several threads, and sums each piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "io/aligned_memory.hpp"
#include "io/control.hpp"
#include "io/descriptor.hpp"

namespace sllm::io {

struct WritePiece {
  std::int64_t offset;
  std::int64_t address;
  std::int64_t size;
};

class FileWriter {
 public:
  // Creates the file, which must not exist.
  FileWriter(std::string path, std::int64_t threads, bool direct);

  // Pieces ascend and are disjoint, over all calls; gaps are zeros. Returns each piece's CRC-32C.
  std::vector<std::uint32_t> write(const std::vector<WritePiece>& pieces, Control& control);
  // Writes what is buffered, sets the exact length, syncs and closes.
  void finish(std::int64_t total_size);
  void abort();

 private:
  // The part of a piece that lies in one block.
  struct Segment {
    std::size_t piece;
    std::size_t block_offset;
    const std::byte* source;
    std::size_t size;
    std::uint32_t crc;
  };
  struct Block {
    std::uint64_t index;
    std::size_t first_segment;
    std::size_t segment_count;
  };
  struct Layout {
    std::vector<Segment> segments;
    std::vector<Block> blocks;
  };

  void require_open() const;
  std::uint64_t check(const std::vector<WritePiece>& pieces) const;
  static Layout lay_out(const std::vector<WritePiece>& pieces);
  void write_layout(Layout& layout, std::uint64_t end, Control& control);
  void reserve(std::uint64_t offset, std::uint64_t size);
  // Copies a block's segments into `slab`, whose first `filled` bytes are taken.
  static std::uint64_t fill(std::byte* slab, std::size_t filled, Layout& layout,
                            const Block& block);
  void flush_carry();
  void write_fully(const std::byte* memory, std::uint64_t size, std::uint64_t offset);

  std::string path_;
  unsigned threads_;
  Descriptor file_;
  std::mutex mutex_;  // one call at a time
  bool failed_ = false;
  std::uint64_t end_ = 0;  // of the data written so far
  // The last block, while it is incomplete. Bytes from carry_filled_ on are not set.
  AlignedMemory carry_;
  std::uint64_t carry_index_ = 0;
  std::size_t carry_filled_ = 0;
};

}  // namespace sllm::io
