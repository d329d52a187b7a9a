#include "io/checksum.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>

#include "io/crc32c.hpp"
#include "io/transfer_plan.hpp"
#include "io/worker_group.hpp"

namespace sllm::io {
namespace {

constexpr std::uint64_t kPieceSize = 2 << 20;
// Pieces that one thread keeps in flight where the reads are queued.
constexpr std::size_t kSlabs = 4;
constexpr unsigned kDepth = 16;
constexpr std::uint32_t kReadSize = 512 << 10;

struct ChecksumPiece {
  std::size_t range;
  std::uint64_t offset;
  std::uint64_t size;
  std::uint32_t crc = 0;
};

std::vector<ChecksumPiece> cut(const File& file, const std::vector<ChecksumRange>& ranges) {
  std::vector<ChecksumPiece> pieces;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const auto [signed_offset, signed_size] = ranges[i];
    if (signed_offset < 0 || signed_size < 0 ||
        signed_offset > std::numeric_limits<std::int64_t>::max() - signed_size) {
      throw std::invalid_argument("range " + std::to_string(i) + ": offset " +
                                  std::to_string(signed_offset) + " with size " +
                                  std::to_string(signed_size) + " is out of range");
    }
    auto offset = static_cast<std::uint64_t>(signed_offset);
    auto left = static_cast<std::uint64_t>(signed_size);
    if (offset + left > file.size() && left != 0) file.throw_too_short(offset, left);
    while (left != 0) {
      const std::uint64_t size = std::min(left, kPieceSize - offset % kPieceSize);
      pieces.push_back({i, offset, size});
      offset += size;
      left -= size;
    }
  }
  return pieces;
}

// A piece being read into a slab whose position in its page is the file's: no bounce is needed.
struct Slab {
  AlignedMemory memory = allocate_aligned(kPieceSize + kPageSize);
  ChecksumPiece* piece = nullptr;
  Ticket ticket;

  std::byte* destination() { return memory.get() + piece->offset % kPageSize; }
  void settle() {
    if (piece == nullptr || ticket.pending != 0) return;
    piece->crc = crc32c(0, destination(), piece->size);
    piece = nullptr;
  }
};

void checksum_pieces(const File& file, ReadMode mode, std::vector<ChecksumPiece>& pieces,
                     ItemClaims& claims, Control& control) {
  std::array<Slab, kSlabs> slabs;
  Reader reader(mode, kDepth, kReadSize);  // destroyed before the slabs it reads into
  std::size_t turn = 0;
  for (std::size_t item = 0; claims.try_claim(item);) {
    Slab& slab = slabs[turn++ % kSlabs];
    while (slab.piece != nullptr) {
      slab.settle();
      if (slab.piece != nullptr) reader.reap(true);
    }
    slab.piece = &pieces[item];
    reader.submit({&file, slab.piece->offset, slab.piece->size, slab.destination()}, slab.ticket);
    control.add_bytes(slab.piece->size);
  }
  while (reader.in_flight() != 0) reader.reap(true);
  for (Slab& slab : slabs) slab.settle();
}

}  // namespace

std::vector<std::uint32_t> checksum_ranges(const std::shared_ptr<const File>& file,
                                           const std::vector<ChecksumRange>& ranges, ReadMode mode,
                                           std::int64_t threads, Control& control) {
  const unsigned thread_count = checked_threads(threads);
  control.throw_if_cancelled();
  require_read_mode(mode, {&file, 1});
  std::vector<ChecksumPiece> pieces = cut(*file, ranges);
  ItemClaims claims(pieces.size(), control);
  run_workers(thread_count, claims, control,
              [&](ItemClaims& items) { checksum_pieces(*file, mode, pieces, items, control); });
  std::vector<std::uint32_t> crcs(ranges.size(), 0);
  for (const ChecksumPiece& piece : pieces) {
    crcs[piece.range] = crc32c_combine(crcs[piece.range], piece.crc, piece.size);
  }
  return crcs;
}

}  // namespace sllm::io
