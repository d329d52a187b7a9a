#include "io/transfer_plan.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace sllm::io {
namespace {

// Big enough to amortise a call, small enough to stay in a core's cache and for the threads to end
// together: on an H200 machine, reads of 512 KiB from memory beat larger and smaller ones.
constexpr std::uint64_t kPieceSize = 512 << 10;
constexpr std::int64_t kThreadsMax = 64;
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

[[noreturn]] void refuse(const char* what, std::size_t index, const std::string& why) {
  throw std::invalid_argument(std::string(what) + " " + std::to_string(index) + ": " + why);
}

std::size_t checked_index(const char* what, std::size_t index, const char* field,
                          std::int64_t value, std::size_t count) {
  if (value < 0 || static_cast<std::uint64_t>(value) >= count) {
    refuse(what, index,
           std::string("there is no ") + field + " " + std::to_string(value) + " among " +
               std::to_string(count));
  }
  return static_cast<std::size_t>(value);
}

void check_extent(const char* what, std::size_t index, const char* field, std::int64_t offset,
                  std::int64_t size) {
  if (offset < 0 || size < 0 || offset > kMax - size) {
    refuse(what, index,
           std::string(field) + " " + std::to_string(offset) + " with size " +
               std::to_string(size) + " is out of range");
  }
}

// The buffer's address plus an extent of it.
std::byte* checked_memory(const char* what, std::size_t index, std::byte* buffer,
                          std::int64_t offset, std::int64_t size) {
  check_extent(what, index, "step_offset", offset, size);
  const auto address = reinterpret_cast<std::uintptr_t>(buffer);
  if (buffer == nullptr) refuse(what, index, "its step has no buffer");
  if (address > static_cast<std::uintptr_t>(kMax - offset - size)) {
    refuse(what, index, "it ends beyond the address space");
  }
  return buffer + offset;
}

void add_steps(const TransferRequest& request, TransferPlan& plan) {
  plan.steps.resize(request.steps.size());
  for (std::size_t i = 0; i < request.steps.size(); ++i) {
    const std::int64_t after = request.steps[i].after;
    if (after < -1 || after >= static_cast<std::int64_t>(i)) {
      refuse("step", i, "it can only wait for an earlier step, not " + std::to_string(after));
    }
    plan.steps[i].after = after;
  }
}

void add_copies(const TransferRequest& request, TransferPlan& plan) {
  std::size_t previous = 0;
  for (std::size_t i = 0; i < request.copies.size(); ++i) {
    const TransferCopy& copy = request.copies[i];
    const std::size_t step = checked_index("copy", i, "step", copy.step, request.steps.size());
    const std::size_t device =
        checked_index("copy", i, "device", copy.device, request.devices.size());
    if (step < previous) refuse("copy", i, "copies are not sorted by step");
    previous = step;
    check_extent("copy", i, "device_offset", copy.device_offset, copy.size);
    const std::int64_t base = request.devices[device].base;
    check_extent("device", device, "base address", base, copy.device_offset + copy.size);
    if (copy.size == 0) continue;
    const std::byte* source =
        checked_memory("copy", i, request.steps[step].buffer, copy.step_offset, copy.size);
    TransferPlan::Step& planned = plan.steps[step];
    if (planned.copy_count++ == 0) planned.first_copy = plan.copies.size();
    plan.copies.push_back({device, static_cast<std::uint64_t>(base + copy.device_offset), source,
                           static_cast<std::uint64_t>(copy.size)});
  }
}

// Sorts each step's copies by device and joins those that continue one another.
void merge_copies(TransferPlan& plan) {
  std::vector<TransferPlan::Copy> merged;
  merged.reserve(plan.copies.size());
  for (TransferPlan::Step& step : plan.steps) {
    const auto first = plan.copies.begin() + static_cast<std::ptrdiff_t>(step.first_copy);
    const auto last = first + static_cast<std::ptrdiff_t>(step.copy_count);
    std::stable_sort(first, last, [](const auto& a, const auto& b) { return a.device < b.device; });
    step.first_copy = merged.size();
    for (auto copy = first; copy != last; ++copy) {
      const bool is_first = merged.size() == step.first_copy;
      const bool same_device = !is_first && merged.back().device == copy->device;
      if (!same_device) ++step.device_count;
      if (same_device && merged.back().destination + merged.back().size == copy->destination &&
          merged.back().source + merged.back().size == copy->source) {
        merged.back().size += copy->size;
      } else {
        merged.push_back(*copy);
      }
    }
    step.copy_count = merged.size() - step.first_copy;
  }
  plan.copies = std::move(merged);
}

// Cuts a step's reads into pieces: big ones at multiples of the piece size in the file, which
// keeps their alignment, and small ones gathered.
class PieceCutter {
 public:
  explicit PieceCutter(TransferPlan& plan) : plan_(plan) {}

  void begin(std::size_t step) {
    piece_ = {step, plan_.ranges.size(), 0, 0};
    pieces_before_ = plan_.pieces.size();
  }

  void add(ReadRange range) {
    while (range.size != 0) {
      const std::uint64_t to_boundary = kPieceSize - range.offset % kPieceSize;
      const std::uint64_t size = std::min(range.size, to_boundary);
      if (piece_.bytes + size > kPieceSize) close();
      plan_.ranges.push_back({range.file, range.offset, size, range.destination});
      ++piece_.range_count;
      piece_.bytes += size;
      range.offset += size;
      range.destination += size;
      range.size -= size;
    }
  }

  void end() {
    if (piece_.range_count != 0 || plan_.pieces.size() == pieces_before_) close();
    plan_.steps[piece_.step].piece_count =
        static_cast<std::uint32_t>(plan_.pieces.size() - pieces_before_);
  }

 private:
  void close() {
    plan_.pieces.push_back(piece_);
    piece_ = {piece_.step, plan_.ranges.size(), 0, 0};
  }

  TransferPlan& plan_;
  TransferPlan::Piece piece_{};
  std::size_t pieces_before_ = 0;
};

// Reads that continue one another, joined.
std::vector<std::pair<std::size_t, ReadRange>> merged_reads(const TransferRequest& request) {
  std::vector<std::pair<std::size_t, ReadRange>> merged;
  std::size_t previous = 0;
  for (std::size_t i = 0; i < request.reads.size(); ++i) {
    const TransferRead& read = request.reads[i];
    const std::size_t step = checked_index("read", i, "step", read.step, request.steps.size());
    const std::size_t index = checked_index("read", i, "file", read.file, request.files.size());
    if (step < previous) refuse("read", i, "reads are not sorted by step");
    previous = step;
    check_extent("read", i, "file_offset", read.file_offset, read.size);
    if (read.size == 0) continue;
    std::byte* destination =
        checked_memory("read", i, request.steps[step].buffer, read.step_offset, read.size);
    const File& file = *request.files[index];
    const auto offset = static_cast<std::uint64_t>(read.file_offset);
    const auto size = static_cast<std::uint64_t>(read.size);
    if (offset + size > file.size()) file.throw_too_short(offset, size);
    if (!merged.empty() && merged.back().first == step) {
      ReadRange& last = merged.back().second;
      if (last.file == &file && last.offset + last.size == offset &&
          last.destination + last.size == destination) {
        last.size += size;
        continue;
      }
    }
    merged.emplace_back(step, ReadRange{&file, offset, size, destination});
  }
  return merged;
}

}  // namespace

unsigned checked_threads(std::int64_t threads) {
  if (threads < 1 || threads > kThreadsMax) {
    throw std::invalid_argument("threads is " + std::to_string(threads) + ", not 1 to " +
                                std::to_string(kThreadsMax));
  }
  return static_cast<unsigned>(threads);
}

TransferPlan make_plan(const TransferRequest& request) {
  checked_threads(request.threads);
  TransferPlan plan;
  add_steps(request, plan);
  add_copies(request, plan);
  merge_copies(plan);
  const auto reads = merged_reads(request);
  PieceCutter cutter(plan);
  std::size_t next = 0;
  for (std::size_t step = 0; step < plan.steps.size(); ++step) {
    cutter.begin(step);
    plan.steps[step].has_reads = next < reads.size() && reads[next].first == step;
    for (; next < reads.size() && reads[next].first == step; ++next) cutter.add(reads[next].second);
    cutter.end();
  }
  require_read_mode(request.mode, request.files);
  return plan;
}

}  // namespace sllm::io
