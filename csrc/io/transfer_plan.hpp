// A transfer request, checked, and cut into pieces of work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "io/file.hpp"
#include "io/host_work.hpp"
#include "io/reader.hpp"
#include "io/tuner.hpp"
#include "lanes/link_stock.hpp"
#include "lanes/slot_layout.hpp"

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

// A coded segment in the step's buffer.
struct TransferDecode {
  std::int64_t step;
  std::int64_t device;
  std::int64_t device_offset;
  std::int64_t raw_size;
  std::int64_t stored_size;
  std::int64_t step_offset;
};

inline constexpr std::int64_t kHostOrdinal = -1;

struct TransferDevice {
  std::int64_t ordinal;  // kHostOrdinal: memory of this process
  std::int64_t base;
  std::vector<std::int64_t> via;  // devices through whose links bytes may go too
};

// Numbers as they come from the caller: make_plan checks them all.
struct TransferRequest {
  std::vector<std::shared_ptr<const File>> files;
  std::vector<TransferStep> steps;
  std::vector<TransferRead> reads;
  std::vector<TransferCopy> copies;
  std::vector<TransferDecode> decodes;
  std::vector<TransferDevice> devices;
  ReadMode mode = ReadMode::kAuto;
  std::int64_t threads = 1;
  std::shared_ptr<Tuner> tuner;             // of the files' disk; null for settings that suit most
  std::shared_ptr<lanes::LinkStock> stock;  // of what links need; null for links that keep nothing
};

// What is read for which step, sorted by step.
using StepReads = std::vector<std::pair<std::size_t, ReadRange>>;

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
  // Consecutive `segments` of a step, for one GPU.
  struct SegmentGroup {
    std::size_t device;
    std::size_t first_segment;
    std::size_t segment_count;
  };
  struct Step {
    std::int64_t after = -1;
    bool is_awaited = false;  // by a later step
    bool has_reads = false;
    std::uint32_t piece_count = 0;
    std::uint64_t bytes_out = 0;  // raw ones, that its copies and decodes deliver
    std::size_t first_copy = 0;
    std::size_t copy_count = 0;  // sorted by device
    std::size_t first_group = 0;
    std::size_t group_count = 0;
    std::size_t first_task = 0;
    std::size_t task_count = 0;
  };

  // Whether a step can be issued without a thread that reads or waits.
  static bool is_ready(const Step& step) { return !step.has_reads && step.after < 0; }

  std::vector<DeviceArena> arenas;  // one for each device, where ranges go to devices
  std::vector<ReadRange> ranges;
  std::vector<Piece> pieces;  // sorted by step; none for a step that is ready
  std::vector<Copy> copies;   // to GPUs, as are the segments
  std::vector<lanes::CodedSegment> segments;
  std::vector<SegmentGroup> groups;
  std::vector<HostTask> tasks;  // copies to the host, and segments decoded there
  std::vector<Step> steps;
  std::uint64_t unread_bytes = 0;  // of copies that became reads: padding that no read brings
};

// Throws std::invalid_argument for a request that makes no sense, and SystemError for a file that
// is too short or cannot be read in the requested mode.
TransferPlan make_plan(const TransferRequest& request);

// The number of threads, checked.
unsigned checked_threads(std::int64_t threads);

}  // namespace sllm::io
