#include "io/transfer.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "io/uring.hpp"
#include "io/worker_group.hpp"
#include "shim/copy_lane.hpp"
#include "shim/peer_access.hpp"

namespace sllm::io {
namespace {

using Clock = std::chrono::steady_clock;

// Reads from a disk in flight, and the threads that keep them so. Few threads with deep queues beat
// many with shallow ones: 4.2 GB/s with one, 3.4 with 2 to 4 and 2.5 with 16 on a virtio disk.
constexpr unsigned kDepthTotal = 64;
constexpr unsigned kQueueThreads = 2;
constexpr unsigned kDepthMin = 4;
constexpr std::size_t kSortedAloneMax = 64;  // pieces that one thread sorts faster than several

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Numbers of pieces, which threads claim in ascending order.
class PieceQueue {
 public:
  void add(std::size_t piece) { pieces_.push_back(piece); }
  bool empty() const { return pieces_.empty(); }
  bool try_claim(std::size_t& piece) {
    const std::size_t index = next_.fetch_add(1);
    if (index >= pieces_.size()) return false;
    piece = pieces_[index];
    return true;
  }

 private:
  std::vector<std::size_t> pieces_;
  std::atomic<std::size_t> next_{0};
};

// Pieces that the disk must deliver go to a few threads with deep queues, those that the page cache
// has to all others, so that neither waits for the other. Each queue is claimed in ascending order
// and always has a thread: the first unfinished step's pieces are all done, in somebody's hands, or
// next in their queue, so there is no deadlock.
class Transfer {
 public:
  Transfer(const TransferRequest& request, Control& control)
      : request_(request),
        control_(control),
        plan_(make_plan(request)),
        states_(plan_.steps.size()),
        start_(Clock::now()) {
    for (std::size_t i = 0; i < states_.size(); ++i) {
      states_[i].pieces_left = plan_.steps[i].piece_count;
      states_[i].lanes_left = plan_.steps[i].device_count;
    }
  }

  TransferReport run();

 private:
  struct StepState {
    std::atomic<std::uint32_t> pieces_left{0};
    std::atomic<std::uint32_t> lanes_left{0};
    std::atomic<bool> done{false};
  };

  // A piece whose reads one thread has started.
  struct ActivePiece {
    const TransferPlan::Piece* piece;
    Ticket ticket;
    bool retired = false;
  };
  using ActivePieces = std::deque<ActivePiece>;

  void open_lanes();
  void run_threads();
  void sort_pieces(unsigned threads);
  bool uses_queues() const;
  bool is_cold(const TransferPlan::Piece& piece) const;
  void work(unsigned depth, bool cold_first);
  void read_pieces(Reader& reader, PieceQueue& queue);
  bool wait_until_ready(const TransferPlan::Piece& piece, Reader& reader, ActivePieces& active);
  void retire(ActivePieces& active);
  void piece_done(const TransferPlan::Piece& piece);
  void issue_copies(std::size_t step);
  void lane_done(std::size_t step, std::uint64_t bytes);
  void step_done(std::size_t step);
  void fail(std::exception_ptr error);
  void wake();
  bool stopped() const { return stopped_.load() || control_.cancelled(); }

  const TransferRequest& request_;
  Control& control_;
  const TransferPlan plan_;
  std::vector<StepState> states_;
  Clock::time_point start_;
  std::vector<std::unique_ptr<cuda::CopyLane>> lanes_;  // by device; null where nothing goes
  PieceQueue cold_;
  PieceQueue warm_;
  std::atomic<bool> stopped_{false};

  std::mutex mutex_;  // of the members below
  std::condition_variable changed_;
  std::exception_ptr error_;
  TransferReport report_;
  std::optional<Clock::time_point> first_copy_;
};

TransferReport Transfer::run() {
  {
    const std::stop_callback on_cancel(control_.token(), [this] { wake(); });
    try {
      if (!stopped()) open_lanes();
      run_threads();
    } catch (...) {
      fail(std::current_exception());
    }
    for (const auto& lane : lanes_) {
      if (lane != nullptr) lane->finish();
    }
    lanes_.clear();
  }
  const auto end = Clock::now();
  if (error_ != nullptr) std::rethrow_exception(error_);
  const bool complete = std::all_of(states_.begin(), states_.end(),
                                    [](const StepState& state) { return state.done.load(); });
  if (!complete) throw CancelledError();
  if (first_copy_) report_.copy_s = seconds(end - *first_copy_);
  report_.total_s = seconds(end - start_);
  return report_;
}

void Transfer::open_lanes() {
  lanes_.resize(request_.devices.size());
  for (const TransferPlan::Copy& copy : plan_.copies) {
    std::unique_ptr<cuda::CopyLane>& lane = lanes_[copy.device];
    if (lane != nullptr) continue;
    lane = std::make_unique<cuda::CopyLane>(
        static_cast<int>(request_.devices[copy.device].ordinal),
        cuda::CopyLane::Events{
            [this](std::size_t step, std::uint64_t bytes) { lane_done(step, bytes); },
            [this](std::exception_ptr error) { fail(std::move(error)); }});
  }
}

void Transfer::run_threads() {
  const auto count = static_cast<unsigned>(
      std::min<std::size_t>(checked_threads(request_.threads), plan_.pieces.size()));
  if (count == 0) return;
  sort_pieces(count);
  unsigned for_cold = 0;
  if (!cold_.empty()) for_cold = std::min(kQueueThreads, warm_.empty() ? count : count - 1);
  const unsigned for_warm = warm_.empty() ? 0 : count - for_cold;
  const unsigned depth = std::max(kDepthTotal / std::max(for_cold, 1U), kDepthMin);
  std::vector<std::jthread> threads;
  try {
    for (unsigned i = 0; i < for_cold + for_warm; ++i) {
      threads.emplace_back([this, depth, cold = i < for_cold] { work(depth, cold); });
    }
  } catch (...) {  // a thread that cannot be started: those that run must stop
    fail(std::current_exception());
  }
}

// A single thread takes all pieces in order: with two queues it could wait for itself.
void Transfer::sort_pieces(unsigned threads) {
  std::vector<std::uint8_t> cold(plan_.pieces.size(), 0);
  if (threads > 1 && uses_queues()) {
    ItemClaims claims(plan_.pieces.size(), control_);
    const unsigned sorters = plan_.pieces.size() > kSortedAloneMax ? threads : 1;
    run_workers(sorters, claims, control_, [&](ItemClaims& items) {
      for (std::size_t i = 0; items.try_claim(i);) cold[i] = is_cold(plan_.pieces[i]) ? 1 : 0;
    });
  }
  for (std::size_t i = 0; i < cold.size(); ++i) (cold[i] != 0 ? cold_ : warm_).add(i);
}

bool Transfer::uses_queues() const {
  if (request_.mode != ReadMode::kAuto && request_.mode != ReadMode::kUring) return false;
  const bool any_direct =
      std::any_of(request_.files.begin(), request_.files.end(),
                  [](const auto& file) { return file->direct_alignment() != 0; });
  if (!any_direct) return false;
  int error = 0;
  return Uring::create(1, error) != nullptr;
}

bool Transfer::is_cold(const TransferPlan::Piece& piece) const {
  for (std::size_t i = 0; i < piece.range_count; ++i) {
    const ReadRange& range = plan_.ranges[piece.first_range + i];
    const File& file = *range.file;
    if (file.direct_alignment() == 0 || file.direct_refused()) continue;
    if (request_.mode == ReadMode::kUring || !file.is_mostly_resident(range.offset, range.size)) {
      return true;
    }
  }
  return false;
}

void Transfer::work(unsigned depth, bool cold_first) {
  try {
    Reader reader(request_.mode, depth);
    if (cold_first) read_pieces(reader, cold_);
    read_pieces(reader, warm_);
    std::lock_guard lock(mutex_);
    report_.bytes_direct += reader.bytes_direct();
    report_.bytes_buffered += reader.bytes_buffered();
    report_.read_s = std::max(report_.read_s, seconds(Clock::now() - start_));
  } catch (...) {
    fail(std::current_exception());
  }
}

void Transfer::read_pieces(Reader& reader, PieceQueue& queue) {
  ActivePieces active;
  for (std::size_t index = 0; !stopped() && queue.try_claim(index);) {
    const TransferPlan::Piece& piece = plan_.pieces[index];
    if (!wait_until_ready(piece, reader, active)) return;
    active.push_back({&piece, Ticket{}});
    Ticket& ticket = active.back().ticket;
    ++ticket.pending;  // held while the ranges are being submitted
    for (std::size_t i = 0; i < piece.range_count; ++i) {
      reader.submit(plan_.ranges[piece.first_range + i], ticket);
    }
    --ticket.pending;
    reader.reap(false);
    retire(active);
  }
  while (reader.in_flight() != 0 && !stopped()) {
    reader.reap(true);
    retire(active);
  }
}

// False when the transfer has stopped. Never sleeps on another thread's work while this thread
// has reads to finish: that work may be waiting for them.
bool Transfer::wait_until_ready(const TransferPlan::Piece& piece, Reader& reader,
                                ActivePieces& active) {
  const std::int64_t after = plan_.steps[piece.step].after;
  if (after < 0) return true;
  const StepState& awaited = states_[static_cast<std::size_t>(after)];
  while (!awaited.done.load() && reader.in_flight() != 0 && !stopped()) {
    reader.reap(true);
    retire(active);
  }
  if (awaited.done.load()) return !stopped();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return awaited.done.load() || stopped(); });
  return !stopped();
}

void Transfer::retire(ActivePieces& active) {
  for (ActivePiece& entry : active) {
    if (entry.retired || entry.ticket.pending != 0) continue;
    entry.retired = true;
    piece_done(*entry.piece);
  }
  while (!active.empty() && active.front().retired) active.pop_front();
}

void Transfer::piece_done(const TransferPlan::Piece& piece) {
  const TransferPlan::Step& step = plan_.steps[piece.step];
  if (step.copy_count == 0 && piece.bytes != 0) control_.add_bytes(piece.bytes);
  if (states_[piece.step].pieces_left.fetch_sub(1) != 1) return;
  if (step.copy_count == 0) {
    step_done(piece.step);
  } else if (!stopped()) {
    issue_copies(piece.step);
  }
}

void Transfer::issue_copies(std::size_t index) {
  const TransferPlan::Step& step = plan_.steps[index];
  {
    std::lock_guard lock(mutex_);
    if (!first_copy_) first_copy_ = Clock::now();
  }
  // What was read is the host's; what was there already may be another arena in device memory.
  const std::byte* buffer = request_.steps[index].buffer;
  const int from = step.has_reads
                       ? cuda::kHostMemory
                       : cuda::memory_device(reinterpret_cast<cuda::DevicePointer>(buffer));
  std::vector<cuda::LaneCopy> batch;
  for (std::size_t i = 0; i < step.copy_count; ++i) {
    const TransferPlan::Copy& copy = plan_.copies[step.first_copy + i];
    batch.push_back({copy.source, copy.destination, copy.size});
    const bool last_of_device =
        i + 1 == step.copy_count || plan_.copies[step.first_copy + i + 1].device != copy.device;
    if (!last_of_device) continue;
    lanes_[copy.device]->issue(index, from, batch);
    batch.clear();
  }
}

void Transfer::lane_done(std::size_t step, std::uint64_t bytes) {
  {
    std::lock_guard lock(mutex_);
    report_.bytes_copied += bytes;
  }
  control_.add_bytes(bytes);
  if (states_[step].lanes_left.fetch_sub(1) == 1) step_done(step);
}

void Transfer::step_done(std::size_t step) {
  states_[step].done.store(true);
  wake();
}

void Transfer::fail(std::exception_ptr error) {
  {
    std::lock_guard lock(mutex_);
    if (error_ == nullptr) error_ = std::move(error);
  }
  stopped_.store(true);
  wake();
}

void Transfer::wake() {
  {
    std::lock_guard lock(mutex_);
  }
  changed_.notify_all();
}

}  // namespace

TransferReport run_transfer(const TransferRequest& request, Control& control) {
  control.throw_if_cancelled();
  return Transfer(request, control).run();
}

}  // namespace sllm::io
