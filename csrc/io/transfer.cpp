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

#include "io/read_batches.hpp"
#include "io/tuner.hpp"
#include "shim/copy_lane.hpp"
#include "shim/peer_access.hpp"

namespace sllm::io {
namespace {

using Clock = std::chrono::steady_clock;

// Of reads that the page cache was to serve and does not.
constexpr unsigned kWarmDepth = 4;

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Batches that the disk must deliver go to a few threads, as many as the tuner says, those that the
// page cache has to all others, so that neither waits for the other. Each queue is claimed in
// ascending order, the first thread is always the disk's and the last one never is: the first
// unfinished step's pieces are all done, in somebody's hands, or next in a queue whose threads wait
// for no later step, so there is no deadlock.
class Transfer {
 public:
  Transfer(const TransferRequest& request, Control& control)
      : request_(request),
        control_(control),
        plan_(make_plan(request)),
        states_(plan_.steps.size()),
        tuner_(request.tuner != nullptr ? request.tuner : fixed_tuner(has_queues(request.mode))),
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

  // A batch whose reads one thread has started.
  struct ActiveBatch {
    Batch batch;
    Ticket ticket;
    bool retired = false;
  };
  // One reading thread.
  struct Worker {
    unsigned index;
    Reader reader;
    std::deque<ActiveBatch> active;
    std::uint64_t counted = 0;  // bytes of its reader that the tuner knows of
  };

  void open_lanes();
  void run_threads();
  void work(unsigned index);
  bool try_claim(Worker& worker, Batch& batch);
  void read_batch(Worker& worker, const Batch& batch);
  void count_bytes(Worker& worker);
  bool wait_until_ready(std::size_t step, Worker& worker);
  void retire(Worker& worker);
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
  BatchQueues queues_;
  std::shared_ptr<Tuner> tuner_;
  unsigned threads_ = 0;
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
  threads_ = static_cast<unsigned>(
      std::min<std::size_t>(checked_threads(request_.threads), plan_.pieces.size()));
  if (threads_ == 0) return;
  sort_batches(plan_, request_.mode, threads_, control_, queues_);
  // One thread at least is left for what is cached.
  tuner_->begin(queues_.warm.empty() ? threads_ : threads_ - 1);
  {
    std::vector<std::jthread> threads;
    try {
      for (unsigned i = 0; i < threads_; ++i) threads.emplace_back([this, i] { work(i); });
    } catch (...) {  // a thread that cannot be started: those that run must stop
      fail(std::current_exception());
    }
  }
  tuner_->end();
  report_.setting = tuner_->setting();
}

void Transfer::work(unsigned index) {
  try {
    const IoSetting setting = tuner_->setting();
    Worker worker{index, Reader(request_.mode, kWarmDepth, setting.size), {}};
    for (Batch batch{}; !stopped() && try_claim(worker, batch);) read_batch(worker, batch);
    while (worker.reader.in_flight() != 0 && !stopped()) {
      worker.reader.reap(true);
      retire(worker);
    }
    std::lock_guard lock(mutex_);
    report_.bytes_direct += worker.reader.bytes_direct();
    report_.bytes_buffered += worker.reader.bytes_buffered();
    report_.read_s = std::max(report_.read_s, seconds(Clock::now() - start_));
  } catch (...) {
    fail(std::current_exception());
  }
}

// False when nothing is left for this thread. One that is not needed now waits: the tuner may want
// more threads later.
bool Transfer::try_claim(Worker& worker, Batch& batch) {
  for (;;) {
    if (!queues_.cold.exhausted()) {
      const IoSetting setting = tuner_->setting();
      const bool for_disk = worker.index < setting.threads;
      const unsigned more = worker.index < setting.depth % setting.threads ? 1 : 0;
      worker.reader.tune(for_disk ? setting.depth / setting.threads + more : kWarmDepth,
                         setting.size);
      if (for_disk && queues_.cold.try_claim(batch)) return true;
      if (for_disk) wake();  // those that wait for a turn at the disk
    }
    if (queues_.warm.try_claim(batch)) return true;
    if (queues_.cold.exhausted()) return false;
    while (worker.reader.in_flight() != 0 && !stopped()) {
      worker.reader.reap(true);
      retire(worker);
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return stopped() || queues_.cold.exhausted() || worker.index < tuner_->setting().threads;
    });
    if (stopped()) return false;
  }
}

void Transfer::read_batch(Worker& worker, const Batch& batch) {
  if (!wait_until_ready(plan_.pieces[batch.first_piece].step, worker)) return;
  worker.active.push_back({batch, Ticket{}});
  Ticket& ticket = worker.active.back().ticket;
  ++ticket.pending;  // held while the ranges are being submitted
  for (const ReadRange& range : joined_ranges(plan_, batch)) {
    worker.reader.submit(range, ticket, batch.source);
  }
  --ticket.pending;
  worker.reader.reap(false);
  retire(worker);
  if (batch.source == Source::kDisk) count_bytes(worker);
}

void Transfer::count_bytes(Worker& worker) {
  const std::uint64_t bytes = worker.reader.bytes_direct() - worker.counted;
  worker.counted += bytes;
  const double now_s = seconds(Clock::now().time_since_epoch());
  if (bytes != 0 && tuner_->add(bytes, now_s)) wake();
}

// False when the transfer has stopped. Never sleeps on another thread's work while this thread
// has reads to finish: that work may be waiting for them.
bool Transfer::wait_until_ready(std::size_t step, Worker& worker) {
  const std::int64_t after = plan_.steps[step].after;
  if (after < 0) return true;
  const StepState& awaited = states_[static_cast<std::size_t>(after)];
  if (awaited.done.load()) return true;
  if (worker.index < tuner_->setting().threads) tuner_->interrupt();
  while (!awaited.done.load() && worker.reader.in_flight() != 0 && !stopped()) {
    worker.reader.reap(true);
    retire(worker);
  }
  if (awaited.done.load()) return !stopped();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return awaited.done.load() || stopped(); });
  return !stopped();
}

void Transfer::retire(Worker& worker) {
  for (ActiveBatch& entry : worker.active) {
    if (entry.retired || entry.ticket.pending != 0) continue;
    entry.retired = true;
    for (std::size_t i = 0; i < entry.batch.piece_count; ++i) {
      piece_done(plan_.pieces[entry.batch.first_piece + i]);
    }
  }
  while (!worker.active.empty() && worker.active.front().retired) worker.active.pop_front();
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
