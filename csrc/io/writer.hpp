// Writes one new file in whole aligned blocks that several threads fill, and sums each piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "io/aligned_memory.hpp"
#include "io/control.hpp"
#include "io/descriptor.hpp"
#include "io/tuner.hpp"
#include "io/write_queue.hpp"

namespace sllm::io {

struct WritePiece {
  std::int64_t offset;
  std::int64_t address;
  std::int64_t size;
};

class FileWriter {
 public:
  // Creates the file, which must not exist. `tuner`: of the disk with the file, for writes; null
  // for a setting that suits most.
  FileWriter(std::string path, std::int64_t threads, bool direct, std::shared_ptr<Tuner> tuner);

  // Pieces ascend and are disjoint, over all calls; gaps are zeros. Returns each piece's CRC-32C
  // when the bytes are copied: a disk that fails may say so in a later call.
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
  void write_block(AlignedMemory& slab, std::uint64_t offset);
  void reserve(std::uint64_t offset, std::uint64_t size);
  // Copies a block's segments into `slab`, whose first `filled` bytes are taken.
  static std::uint64_t fill(std::byte* slab, std::size_t filled, Layout& layout,
                            const Block& block);
  void flush_carry();
  void write_fully(const std::byte* memory, std::uint64_t size, std::uint64_t offset);

  std::string path_;
  unsigned threads_;
  Descriptor file_;
  std::unique_ptr<WriteQueue> queue_;  // null where the threads write themselves
  std::mutex mutex_;                   // one call at a time
  bool failed_ = false;
  std::uint64_t end_ = 0;  // of the data written so far
  // The last block, while it is incomplete. Bytes from carry_filled_ on are not set.
  AlignedMemory carry_;
  std::uint64_t carry_index_ = 0;
  std::size_t carry_filled_ = 0;
};

}  // namespace sllm::io
