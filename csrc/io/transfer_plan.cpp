#include "io/transfer_plan.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "io/aligned_memory.hpp"
#include "io/delivery_plan.hpp"
#include "io/device_reads.hpp"
#include "io/request_checks.hpp"

namespace sllm::io {
namespace {

// Big enough to amortise a call, small enough to stay in a core's cache and for the threads to end
// together: on an H200 machine, reads of 512 KiB from memory beat larger and smaller ones.
constexpr std::uint64_t kPieceSize = 512 << 10;
constexpr std::int64_t kThreadsMax = 64;

void add_steps(const TransferRequest& request, TransferPlan& plan) {
  plan.steps.resize(request.steps.size());
  for (std::size_t i = 0; i < request.steps.size(); ++i) {
    const std::int64_t after = request.steps[i].after;
    if (after < -1 || after >= static_cast<std::int64_t>(i)) {
      refuse("step", i, "it can only wait for an earlier step, not " + std::to_string(after));
    }
    plan.steps[i].after = after;
    if (after >= 0) plan.steps[static_cast<std::size_t>(after)].is_awaited = true;
  }
}

// Cuts a step's reads into pieces: big ones every piece size from the page that they begin in,
// which keeps their alignment and leaves one rest at most, and small ones gathered.
class PieceCutter {
 public:
  explicit PieceCutter(TransferPlan& plan) : plan_(plan) {}

  void begin(std::size_t step) {
    piece_ = {step, plan_.ranges.size(), 0, 0};
    pieces_before_ = plan_.pieces.size();
  }

  void add(ReadRange range) {
    const std::uint64_t start = align_down(range.offset, kPageSize);
    while (range.size != 0) {
      const std::uint64_t to_boundary = kPieceSize - (range.offset - start) % kPieceSize;
      const std::uint64_t size = std::min(range.size, to_boundary);
      if (piece_.bytes + size > kPieceSize) close();
      plan_.ranges.push_back({range.file, range.offset, size, range.destination, range.arena});
      ++piece_.range_count;
      piece_.bytes += size;
      range.offset += size;
      range.destination += size;
      range.size -= size;
    }
  }

  // A step without reads that waits for another one gets an empty piece: somebody has to wait.
  void end() {
    const bool none_yet = plan_.pieces.size() == pieces_before_;
    const bool is_ready = TransferPlan::is_ready(plan_.steps[piece_.step]);
    if (piece_.range_count != 0 || (none_yet && !is_ready)) close();
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
StepReads merged_reads(const TransferRequest& request) {
  StepReads merged;
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
    const ReadRange range{&file, offset, size, destination};
    const bool same_step = !merged.empty() && merged.back().first == step;
    if (!same_step || !try_join(merged.back().second, range)) merged.emplace_back(step, range);
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
  plan_deliveries(request, plan);
  StepReads reads = merged_reads(request);
  for (const auto& [step, range] : reads) plan.steps[step].has_reads = true;
  if (request.mode == ReadMode::kCufile) redirect_reads(request, plan, reads);
  PieceCutter cutter(plan);
  std::size_t next = 0;
  for (std::size_t step = 0; step < plan.steps.size(); ++step) {
    cutter.begin(step);
    for (; next < reads.size() && reads[next].first == step; ++next) cutter.add(reads[next].second);
    cutter.end();
  }
  require_read_mode(request.mode, request.files);
  return plan;
}

}  // namespace sllm::io
