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
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include "io/deliveries.hpp"
#include "io/read_batches.hpp"
#include "io/tuner.hpp"

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
      : start_(Clock::now()),
        request_(request),
        control_(control),
        plan_(make_plan(request)),
        states_(plan_.steps.size()),
        tuner_(request.tuner != nullptr ? request.tuner : fixed_tuner(has_queues(request.mode))),
        steps_left_(plan_.steps.size()),
        deliveries_(request_, plan_, control,
                    {[this](std::size_t step) { step_done(step); }, [this] { wake(); },
                     [this](std::exception_ptr error) { fail(std::move(error)); }}) {
    for (std::size_t i = 0; i < states_.size(); ++i) {
      states_[i].pieces_left = plan_.steps[i].piece_count;
    }
  }

  TransferReport run();

 private:
  struct StepState {
    std::atomic<std::uint32_t> pieces_left{0};
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

  void run_steps();
  void run_threads();
  void work(unsigned index);
  bool try_claim(Worker& worker, Batch& batch);
  void read_batch(Worker& worker, const Batch& batch);
  void count_bytes(Worker& worker);
  bool wait_until_ready(std::size_t step, Worker& worker);
  void retire(Worker& worker);
  void help();
  void piece_done(const TransferPlan::Piece& piece);
  void step_done(std::size_t step);
  void fail(std::exception_ptr error);
  void wake();
  bool stopped() const { return stopped_.load() || control_.cancelled(); }

  const Clock::time_point start_;
  const TransferRequest& request_;
  Control& control_;
  const TransferPlan plan_;
  std::vector<StepState> states_;
  BatchQueues queues_;
  std::shared_ptr<Tuner> tuner_;
  unsigned threads_ = 0;
  std::atomic<std::size_t> steps_left_;
  std::atomic<bool> stopped_{false};

  std::mutex mutex_;  // of the members below
  std::condition_variable changed_;
  std::exception_ptr error_;
  TransferReport report_;

  Deliveries deliveries_;  // its threads use all the others
};

TransferReport Transfer::run() {
  {
    const std::stop_callback on_cancel(control_.token(), [this] {
      deliveries_.stop();
      wake();
    });
    try {
      run_steps();
    } catch (...) {
      fail(std::current_exception());
    }
    deliveries_.finish();
  }
  const auto end = Clock::now();
  if (error_ != nullptr) std::rethrow_exception(error_);
  if (steps_left_.load() != 0) throw CancelledError();
  report_.bytes_copied = deliveries_.bytes();
  if (report_.bytes_copied != 0) report_.copy_s = seconds(end - deliveries_.begin());
  report_.total_s = seconds(end - start_);
  return report_;
}

// What is in memory already goes out before anything is read, and takes no reader.
void Transfer::run_steps() {
  if (plan_.unread_bytes != 0) control_.add_bytes(plan_.unread_bytes);
  deliveries_.start();
  for (std::size_t i = 0; i < plan_.steps.size() && !stopped(); ++i) {
    if (!TransferPlan::is_ready(plan_.steps[i])) continue;
    if (plan_.steps[i].bytes_out == 0) {
      step_done(i);
    } else {
      deliveries_.deliver(i);
    }
  }
  run_threads();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return steps_left_.load() == 0 || stopped(); });
}

void Transfer::run_threads() {
  threads_ = static_cast<unsigned>(std::min<std::size_t>(checked_threads(request_.threads),
                                                         plan_.pieces.size() + plan_.tasks.size()));
  report_.setting = tuner_->setting();
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
    for (Batch batch{}; !stopped() && try_claim(worker, batch);) {
      read_batch(worker, batch);
      if (batch.source != Source::kDisk) deliveries_.do_host_work();  // the disk shall not wait
    }
    while (worker.reader.in_flight() != 0 && !stopped()) {
      worker.reader.reap(true);
      retire(worker);
    }
    {
      std::lock_guard lock(mutex_);
      report_.bytes_direct += worker.reader.bytes_direct();
      report_.bytes_buffered += worker.reader.bytes_buffered();
      report_.read_s = std::max(report_.read_s, seconds(Clock::now() - start_));
    }
    help();
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
    deliveries_.do_host_work();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return stopped() || queues_.cold.exhausted() || deliveries_.has_host_work() ||
             worker.index < tuner_->setting().threads;
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
  if (worker.index < tuner_->setting().threads && tuner_->interrupt()) wake();
  while (!awaited.done.load() && worker.reader.in_flight() != 0 && !stopped()) {
    worker.reader.reap(true);
    retire(worker);
  }
  while (!awaited.done.load() && !stopped()) {
    deliveries_.do_host_work();
    std::unique_lock lock(mutex_);
    changed_.wait(lock,
                  [&] { return awaited.done.load() || deliveries_.has_host_work() || stopped(); });
  }
  return !stopped();
}

// For a thread that has nothing left to read: takes part in the host's work until it is over.
void Transfer::help() {
  while (!deliveries_.is_host_work_over() && !stopped()) {
    deliveries_.do_host_work();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return deliveries_.is_host_work_over() || deliveries_.has_host_work() || stopped();
    });
  }
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
  if (step.bytes_out == 0 && piece.bytes != 0) control_.add_bytes(piece.bytes);
  if (states_[piece.step].pieces_left.fetch_sub(1) != 1) return;
  if (step.bytes_out == 0) {
    step_done(piece.step);
  } else if (!stopped()) {
    deliveries_.deliver(piece.step);
  }
}

void Transfer::step_done(std::size_t step) {
  states_[step].done.store(true);
  const bool is_last = steps_left_.fetch_sub(1) == 1;
  if (is_last || plan_.steps[step].is_awaited) wake();
}

void Transfer::fail(std::exception_ptr error) {
  {
    std::lock_guard lock(mutex_);
    if (error_ == nullptr) error_ = std::move(error);
  }
  stopped_.store(true);
  deliveries_.stop();
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
