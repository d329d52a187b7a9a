#include "io/tuner.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

namespace sllm::io {
namespace {

constexpr std::uint32_t kSizeMin = 128 << 10;
constexpr std::uint32_t kSizeMax = 2 << 20;
constexpr unsigned kDepthMax = 256;
constexpr unsigned kQueueThreadsMax = 8;
constexpr std::uint64_t kInFlightMax = 64 << 20;

constexpr IoSetting kQueuedStart{1, 16, 1 << 20};
constexpr IoSetting kThreadsStart{8, 8, 2 << 20};

// How sure a comparison must be. Windows of one setting differ by some 3 % on a shared disk.
constexpr double kMargin = 1.02;
constexpr double kClearlyBetter = 1.08;
constexpr double kClearlyWorse = 0.85;
constexpr std::array<double, 3> kDoubtful{0.99, 1.005, 1.01};  // after 1, 2, 3 looks
constexpr int kLooksMax = 4;
constexpr unsigned kRestWindows = 32;
constexpr double kNewest = 0.2;  // weight of a window in the best setting's rate

// A window is long enough for its rate to mean something, on fast disks and on slow ones.
constexpr std::uint64_t kWindowBytes = 192 << 20;
constexpr double kWindowShortest = 0.04;
constexpr std::uint64_t kWindowBytesMin = 16 << 20;
constexpr double kWindowLong = 0.5;

// Powers of two by which a neighbour differs.
struct Move {
  int threads;
  int depth;
  int size;
};
constexpr std::size_t kMoves = 12;
constexpr std::array<Move, kMoves> kQueuedMoves{{
    {0, 1, 0},
    {0, -1, 1},
    {0, 1, -1},
    {0, -1, 0},
    {0, 0, 1},
    {0, 0, -1},
    {0, -2, 2},
    {0, 2, -2},
    {0, 2, 0},
    {0, -2, 0},
    {1, 0, 0},
    {-1, 0, 0},
}};
constexpr std::array<Move, kMoves> kThreadMoves{{
    {1, 1, 0},
    {-1, -1, 0},
    {0, 0, 1},
    {0, 0, -1},
    {-1, -1, 1},
    {1, 1, -1},
    {1, 1, 1},
    {-1, -1, -1},
    {2, 2, -2},
    {-2, -2, 2},
    {2, 2, 0},
    {-2, -2, 0},
}};

constexpr std::size_t kToUsual = kMoves;  // the move that follows the others

template <typename Integer>
Integer scaled(Integer value, int power) {
  return power > 0 ? value << power : value >> -power;
}

bool is_allowed(const IoSetting& setting, bool queued, unsigned threads_max) {
  return setting.threads >= 1 && setting.threads <= threads_max &&
         setting.threads <= (queued ? kQueueThreadsMax : kIoThreadsMax) &&
         setting.depth >= setting.threads && setting.depth <= kDepthMax &&
         (queued || setting.depth == setting.threads) && setting.size >= kSizeMin &&
         setting.size <= kSizeMax && std::uint64_t{setting.depth} * setting.size <= kInFlightMax;
}

}  // namespace

SettingSearch::SettingSearch(bool queued, const IoSetting& start, double rate,
                             const std::vector<RefusedSetting>& refused)
    : queued_(queued), usual_(queued ? kQueuedStart : kThreadsStart), best_(start), rate_(rate) {
  if (!is_allowed(start, queued, kIoThreadsMax) || !(rate >= 0)) {
    throw std::invalid_argument("no search starts from " + std::to_string(start.threads) +
                                " threads, " + std::to_string(start.depth) +
                                " requests in flight of " + std::to_string(start.size) + " bytes");
  }
  for (const RefusedSetting& entry : refused) {
    for (std::size_t move = 0; move <= kToUsual; ++move) {
      if (neighbour(move) == entry.setting && !is_refused(entry.setting)) refused_.push_back(entry);
    }
  }
  settled_ = !untried().has_value();
}

void SettingSearch::limit_threads(unsigned threads_max) {
  threads_max_ = threads_max;
  if (trial_ && trial_->setting.threads > threads_max_) {
    trial_.reset();
    on_trial_ = false;
  }
}

void SettingSearch::measured(double rate) {
  if (on_trial_) {
    on_trial_ = false;
    trial_->rate = rate;
    if (rate < kClearlyWorse * reference_) refuse(rate / reference_);
    return;
  }
  const double before = reference_;
  reference_ = rate;
  rate_ = rate_ == 0 ? rate : rate_ + kNewest * (rate - rate_);
  if (trial_) judge(2 * trial_->rate / (before + rate));
  if (!trial_) choose_trial();
  on_trial_ = trial_.has_value();
}

void SettingSearch::put_off() {
  if (!on_trial_) return;
  on_trial_ = false;
  trial_.reset();
}

void SettingSearch::judge(double ratio) {
  trial_->ratios += ratio;
  ++trial_->looks;
  const int looks = trial_->looks;
  const double mean = trial_->ratios / looks;
  if (mean > kClearlyBetter && looks > 1) return accept();
  if (looks == kLooksMax) return mean > kMargin ? accept() : refuse(mean);
  if (mean < kDoubtful[static_cast<std::size_t>(looks - 1)]) refuse(mean);
}

void SettingSearch::accept() {
  const IoSetting old = best_;
  const double ratio = trial_->ratios / trial_->looks;
  best_ = trial_->setting;
  reference_ = rate_ = trial_->rate;
  first_move_ = trial_->move;  // what has helped may help again
  std::erase_if(refused_, [this](const RefusedSetting& entry) { return entry.setting != usual_; });
  refused_.push_back({old, 1 / ratio});
  settled_ = false;
  trial_.reset();
}

void SettingSearch::refuse(double ratio) {
  refused_.push_back({trial_->setting, ratio});
  trial_.reset();
}

void SettingSearch::choose_trial() {
  std::optional<std::size_t> move = untried();
  settled_ = settled_ || !move;
  if (!move && !refused_.empty() && ++rest_ >= kRestWindows) {
    refused_.erase(refused_.begin());
    move = untried();
  }
  if (!move) return;
  rest_ = 0;
  trial_ = Trial{*neighbour(*move), *move};
}

std::optional<std::size_t> SettingSearch::untried() const {
  const auto usual = neighbour(kToUsual);
  if (usual && !is_refused(*usual)) return kToUsual;
  for (std::size_t i = 0; i < kMoves; ++i) {
    const std::size_t move = (first_move_ + i) % kMoves;
    const auto found = neighbour(move);
    if (found && !is_refused(*found)) return move;
  }
  return std::nullopt;
}

std::optional<IoSetting> SettingSearch::neighbour(std::size_t index) const {
  if (index == kToUsual) {
    const bool is_other = usual_ != best_ && is_allowed(usual_, queued_, threads_max_);
    return is_other ? std::optional(usual_) : std::nullopt;
  }
  const Move& move = (queued_ ? kQueuedMoves : kThreadMoves)[index];
  const IoSetting found{scaled(best_.threads, move.threads), scaled(best_.depth, move.depth),
                        scaled(best_.size, move.size)};
  if (!is_allowed(found, queued_, threads_max_)) return std::nullopt;
  return found;
}

bool SettingSearch::is_refused(const IoSetting& setting) const {
  return std::any_of(refused_.begin(), refused_.end(),
                     [&](const RefusedSetting& entry) { return entry.setting == setting; });
}

Tuner::Tuner(bool queued, const IoSetting& start, double rate,
             const std::vector<RefusedSetting>& refused, bool learns)
    : queued_(queued), learns_(learns), search_(queued, start, rate, refused) {}

IoSetting Tuner::setting() const {
  std::lock_guard lock(mutex_);
  IoSetting setting = search_.current();
  if (setting.threads > threads_max_) {
    setting.threads = threads_max_;
    if (!queued_) setting.depth = threads_max_;
  }
  return setting;
}

SettingSearch Tuner::search() const {
  std::lock_guard lock(mutex_);
  return search_;
}

std::uint64_t Tuner::windows() const {
  std::lock_guard lock(mutex_);
  return windows_;
}

void Tuner::begin(unsigned threads_max) {
  std::lock_guard lock(mutex_);
  if (++active_ == 1) {
    threads_max_ = std::max(threads_max, 1U);
    search_.limit_threads(threads_max_);
  }
  start_window(0);
}

void Tuner::end() {
  std::lock_guard lock(mutex_);
  --active_;
  start_window(0);
}

bool Tuner::interrupt() {
  std::lock_guard lock(mutex_);
  const IoSetting before = search_.current();
  search_.put_off();
  const bool changed = search_.current() != before;
  start_window(changed ? std::uint64_t{before.depth} * before.size : 0);
  return changed;
}

// What is in flight at first fills the pipeline, or was asked for with other settings.
void Tuner::start_window(std::uint64_t skipped_bytes) {
  const IoSetting& current = search_.current();
  skip_bytes_ = skipped_bytes + std::uint64_t{current.depth} * current.size;
  window_bytes_ = 0;
  window_start_s_.reset();
}

bool Tuner::add(std::uint64_t bytes, double now_s) {
  std::lock_guard lock(mutex_);
  if (!learns_ || active_ != 1 || search_.best().threads > threads_max_) return false;
  if (!window_start_s_) {
    skip_bytes_ -= std::min(skip_bytes_, bytes);
    if (skip_bytes_ == 0) window_start_s_ = now_s;
    return false;
  }
  window_bytes_ += bytes;
  const double elapsed_s = now_s - *window_start_s_;
  const bool enough = window_bytes_ >= kWindowBytes && elapsed_s >= kWindowShortest;
  const bool slow = window_bytes_ >= kWindowBytesMin && elapsed_s >= kWindowLong;
  if (!enough && !slow) return false;
  const IoSetting before = search_.current();
  search_.measured(static_cast<double>(window_bytes_) / elapsed_s);
  ++windows_;
  if (search_.current() == before) {
    window_bytes_ = 0;
    window_start_s_ = now_s;
    return false;
  }
  start_window(std::uint64_t{before.depth} * before.size);
  return true;
}

std::shared_ptr<Tuner> fixed_tuner(bool queued) {
  const IoSetting setting = queued ? kQueuedStart : kThreadsStart;
  return std::make_shared<Tuner>(queued, setting, 0, std::vector<RefusedSetting>{}, false);
}

}  // namespace sllm::io
