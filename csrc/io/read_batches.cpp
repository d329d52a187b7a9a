#include "io/read_batches.hpp"

#include <algorithm>

#include "io/worker_group.hpp"

namespace sllm::io {
namespace {

// What the page cache is asked about at once, and the most that one disk read takes.
constexpr std::uint64_t kBatchSize = 2 << 20;
constexpr std::size_t kSortedAloneMax = 64;  // batches that one thread sorts faster than several

// Whole pieces, so that whole disk reads fit.
std::vector<Batch> cut(const TransferPlan& plan) {
  std::vector<Batch> batches;
  std::uint64_t bytes = 0;
  bool closed = true;
  for (std::size_t i = 0; i < plan.pieces.size(); ++i) {
    const TransferPlan::Piece& piece = plan.pieces[i];
    if (closed || bytes + piece.bytes > kBatchSize || plan.pieces[i - 1].step != piece.step) {
      batches.push_back({i, 0, Source::kUnknown});
      bytes = 0;
    }
    ++batches.back().piece_count;
    bytes += piece.bytes;
    closed = piece.range_count == 0;
  }
  return batches;
}

Source source_of(const TransferPlan& plan, ReadMode mode, const Batch& batch) {
  const bool asks = mode == ReadMode::kAuto || mode == ReadMode::kCufile;
  for (const ReadRange& range : joined_ranges(plan, batch)) {
    if (range.arena != nullptr) return Source::kDisk;
    const File& file = *range.file;
    if (file.direct_alignment() == 0 || file.direct_refused()) continue;
    if (!asks || !file.is_mostly_resident(range.offset, range.size)) {
      return Source::kDisk;
    }
  }
  return Source::kCache;
}

bool any_direct(const TransferPlan& plan, ReadMode mode) {
  if (mode == ReadMode::kBuffered) return false;
  return std::any_of(plan.ranges.begin(), plan.ranges.end(), [](const ReadRange& range) {
    return range.arena != nullptr || range.file->direct_alignment() != 0;
  });
}

}  // namespace

void sort_batches(const TransferPlan& plan, ReadMode mode, unsigned threads, Control& control,
                  BatchQueues& queues) {
  std::vector<Batch> batches = cut(plan);
  if (any_direct(plan, mode)) {
    ItemClaims claims(batches.size(), control);
    run_workers(batches.size() > kSortedAloneMax ? threads : 1, claims, control,
                [&](ItemClaims& items) {
                  for (std::size_t i = 0; items.try_claim(i);) {
                    batches[i].source = source_of(plan, mode, batches[i]);
                  }
                });
  } else {
    for (Batch& batch : batches) batch.source = Source::kCache;
  }
  for (const Batch& batch : batches) {
    if (batch.source == Source::kDisk) {
      queues.cold.add(batch);
      continue;
    }
    // What is in memory goes piece by piece, so that the threads end together.
    for (std::size_t i = 0; i < batch.piece_count; ++i) {
      (threads > 1 ? queues.warm : queues.cold).add({batch.first_piece + i, 1, batch.source});
    }
  }
}

std::vector<ReadRange> joined_ranges(const TransferPlan& plan, const Batch& batch) {
  std::vector<ReadRange> joined;
  for (std::size_t i = 0; i < batch.piece_count; ++i) {
    const TransferPlan::Piece& piece = plan.pieces[batch.first_piece + i];
    for (std::size_t j = 0; j < piece.range_count; ++j) {
      const ReadRange& range = plan.ranges[piece.first_range + j];
      if (joined.empty() || !try_join(joined.back(), range)) joined.push_back(range);
    }
  }
  return joined;
}

}  // namespace sllm::io
