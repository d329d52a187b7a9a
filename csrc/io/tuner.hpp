// Learns from the bytes that arrive how a disk is best asked for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace sllm::io {

inline constexpr unsigned kIoThreadsMax = 64;

// `depth` counts the requests in flight over all threads, `size` is that of one.
struct IoSetting {
  unsigned threads = 1;
  unsigned depth = 16;
  std::uint32_t size = 1 << 20;

  bool operator==(const IoSetting&) const = default;
};

// A neighbour of the best setting that was tried and was no better.
struct RefusedSetting {
  IoSetting setting;
  double ratio;  // of its rate to the best one's
};

// A hill climb over settings: decisions alone, without a clock. A neighbour of the best setting is
// run between two windows of the best one and compared with their mean, so that a disk that slows
// down is not held against it; up to kLooksMax times while it is in doubt. It becomes the best one
// only if it wins by kMargin, so that equals do not take turns.
class SettingSearch {
 public:
  // `queued`: a thread keeps several requests in flight; otherwise one, so depth is threads.
  SettingSearch(bool queued, const IoSetting& start, double rate,
                const std::vector<RefusedSetting>& refused);

  const IoSetting& best() const { return best_; }
  // What to run now: the best setting, or the one on trial.
  const IoSetting& current() const { return on_trial_ ? trial_->setting : best_; }
  // Of the best setting, bytes per second; 0 before it was measured.
  double rate() const { return rate_; }
  const std::vector<RefusedSetting>& refused() const { return refused_; }
  // True once every neighbour was refused. One is tried again now and then: disks change.
  bool settled() const { return settled_; }

  // From now on no setting is tried that has more threads.
  void limit_threads(unsigned threads_max);
  // Takes the rate of a window that ran the current setting.
  void measured(double rate);
  // The window that ran the setting on trial came to nothing: the best one runs until it has been
  // measured again, and then the trial begins anew.
  void put_off();

 private:
  struct Trial {
    IoSetting setting;
    std::size_t move;
    double rate = 0;  // of its last window
    double ratios = 0;
    int looks = 0;
  };

  // What suits most disks counts as a neighbour of all settings, the one to be tried first: a
  // search may have strayed, or have begun elsewhere.
  std::optional<IoSetting> neighbour(std::size_t move) const;
  bool is_refused(const IoSetting& setting) const;
  // The next move to a neighbour that was not tried.
  std::optional<std::size_t> untried() const;
  void judge(double ratio);
  void accept();
  void refuse(double ratio);
  void choose_trial();

  bool queued_;
  IoSetting usual_;
  unsigned threads_max_ = kIoThreadsMax;
  IoSetting best_;
  double rate_;
  double reference_ = 0;                 // the last window of the best setting
  std::vector<RefusedSetting> refused_;  // the one tried longest ago first
  std::optional<Trial> trial_;
  bool on_trial_ = false;
  bool settled_ = false;
  std::size_t first_move_ = 0;
  unsigned rest_ = 0;  // windows since everything was refused
};

// A search fed by one transfer at a time: cuts its bytes into windows, and knows which windows
// tell nothing. Any thread may call.
class Tuner {
 public:
  // One that does not learn keeps its setting.
  Tuner(bool queued, const IoSetting& start, double rate,
        const std::vector<RefusedSetting>& refused, bool learns);

  bool queued() const { return queued_; }
  IoSetting setting() const;
  SettingSearch search() const;
  std::uint64_t windows() const;

  // A transfer with up to `threads_max` threads for the disk begins, and ends. While several run
  // nothing is learnt, as none has the disk to itself, nor while the best setting needs more.
  void begin(unsigned threads_max);
  void end();
  // Bytes have come from the disk. True when the setting is another one now.
  bool add(std::uint64_t bytes, double now_s);
  // Something other than the disk held the reads up: this window tells nothing. True when the
  // setting is another one now.
  bool interrupt();

 private:
  void start_window(std::uint64_t skipped_bytes);

  const bool queued_;
  const bool learns_;
  mutable std::mutex mutex_;
  SettingSearch search_;
  unsigned active_ = 0;
  unsigned threads_max_ = kIoThreadsMax;
  std::uint64_t windows_ = 0;
  std::uint64_t skip_bytes_ = 0;  // still to come from reads of the setting before
  std::uint64_t window_bytes_ = 0;
  std::optional<double> window_start_s_;
};

// One that keeps what suits most disks, by queues (`queued`) or by threads.
std::shared_ptr<Tuner> fixed_tuner(bool queued);

}  // namespace sllm::io
