// A transfer request, checked, and cut into pieces of work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "io/file.hpp"
#include "io/reader.hpp"
#include "io/tuner.hpp"

namespace sllm::io {

struct TransferStep {
  std::byte* buffer;   // device memory, perhaps, where the step has no reads
  std::int64_t after;  // index of an earlier step, or -1
};

struct TransferRead {
  std::int64_t step;
  std::int64_t file;
  std::int64_t file_offset;
  std::int64_t size;
  std::int64_t step_offset;
};

struct TransferCopy {
  std::int64_t step;
  std::int64_t device;
  std::int64_t device_offset;
  std::int64_t size;
  std::int64_t step_offset;
};

struct TransferDevice {
  std::int64_t ordinal;
  std::int64_t base;
};

// Numbers as they come from the caller: make_plan checks them all.
struct TransferRequest {
  std::vector<std::shared_ptr<const File>> files;
  std::vector<TransferStep> steps;
  std::vector<TransferRead> reads;
  std::vector<TransferCopy> copies;
  std::vector<TransferDevice> devices;
  ReadMode mode = ReadMode::kAuto;
  std::int64_t threads = 1;
  std::shared_ptr<Tuner> tuner;  // of the files' disk; null for settings that suit most
};

struct TransferPlan {
  // Consecutive `ranges`, read by one thread.
  struct Piece {
    std::size_t step;
    std::size_t first_range;
    std::size_t range_count;
    std::uint64_t bytes;
  };
  struct Copy {
    std::size_t device;
    std::uint64_t destination;
    const std::byte* source;
    std::uint64_t size;
  };
  struct Step {
    std::int64_t after = -1;
    std::uint32_t piece_count = 0;
    std::uint32_t device_count = 0;  // distinct devices among its copies
    std::size_t first_copy = 0;
    std::size_t copy_count = 0;  // sorted by device
    bool has_reads = false;
  };

  std::vector<ReadRange> ranges;
  std::vector<Piece> pieces;  // sorted by step; a step without reads has one empty piece
  std::vector<Copy> copies;
  std::vector<Step> steps;
};

// Throws std::invalid_argument for a request that makes no sense, and SystemError for a file that
// is too short or cannot be read in the requested mode.
TransferPlan make_plan(const TransferRequest& request);

// The number of threads, checked.
unsigned checked_threads(std::int64_t threads);

}  // namespace sllm::io
