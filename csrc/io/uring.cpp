#include "io/uring.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

namespace sllm::io {

// The kernel's interface, declared here so that no header of the build machine decides what the
// running machine may use (linux/io_uring.h).
struct UringSubmission {
  std::uint8_t opcode;
  std::uint8_t flags;
  std::uint16_t priority;
  std::int32_t fd;
  std::uint64_t offset;
  std::uint64_t address;
  std::uint32_t size;
  std::uint32_t read_flags;
  std::uint64_t tag;
  std::uint64_t unused[3];
};
static_assert(sizeof(UringSubmission) == 64);

struct UringCompletion {
  std::uint64_t tag;
  std::int32_t result;
  std::uint32_t flags;
};

namespace {

struct Timespec {
  std::int64_t seconds;
  std::int64_t nanoseconds;
};

struct EnterArgument {
  std::uint64_t signal_mask;
  std::uint32_t signal_mask_size;
  std::uint32_t unused;
  std::uint64_t timeout;
};

struct SubmissionOffsets {
  std::uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
  std::uint64_t user_address;
};

struct CompletionOffsets {
  std::uint32_t head, tail, ring_mask, ring_entries, overflow, entries, flags, reserved;
  std::uint64_t user_address;
};

struct Parameters {
  std::uint32_t submission_entries, completion_entries, flags, thread_cpu, thread_idle, features;
  std::uint32_t work_fd, reserved[3];
  SubmissionOffsets submission;
  CompletionOffsets completion;
};
static_assert(sizeof(Parameters) == 120);

constexpr long kSetup = 425;
constexpr long kEnter = 426;
constexpr std::uint8_t kOpcodeRead = 22;
constexpr std::uint8_t kOpcodeWrite = 23;
constexpr std::uint8_t kSubmissionDrain = 1U << 1;
constexpr std::uint8_t kSubmissionAsync = 1U << 4;
constexpr unsigned kEnterGetEvents = 1U << 0;
constexpr unsigned kEnterExtendedArgument = 1U << 3;
constexpr unsigned kSetupSingleIssuer = 1U << 12;
constexpr unsigned kSetupDeferTaskrun = 1U << 13;
constexpr unsigned kFeatureSingleMmap = 1U << 0;
constexpr unsigned kFeatureExtendedArgument = 1U << 8;
constexpr off_t kOffsetRings = 0;
constexpr off_t kOffsetSubmissions = 0x10000000;

std::uint32_t load_acquire(std::uint32_t* value) {
  return std::atomic_ref<std::uint32_t>(*value).load(std::memory_order_acquire);
}

void store_release(std::uint32_t* value, std::uint32_t next) {
  std::atomic_ref<std::uint32_t>(*value).store(next, std::memory_order_release);
}

}  // namespace

std::unique_ptr<Uring> Uring::create(unsigned entries, int& error, Users users) {
  std::unique_ptr<Uring> ring(new Uring());
  error = ring->open(entries, users);
  if (error != 0) ring.reset();
  return ring;
}

int Uring::open(unsigned entries, Users users) {
  Parameters parameters{};
  if (users == Users::kOneThread) parameters.flags = kSetupSingleIssuer | kSetupDeferTaskrun;
  long fd = ::syscall(kSetup, entries, &parameters);
  if (fd < 0 && errno == EINVAL) {  // before kernel 6.1
    parameters = Parameters{};
    fd = ::syscall(kSetup, entries, &parameters);
  }
  if (fd < 0) return errno;
  ring_ = Descriptor(static_cast<int>(fd));
  if ((parameters.features & kFeatureSingleMmap) == 0) return EOPNOTSUPP;  // before kernel 5.4
  can_time_out_ = (parameters.features & kFeatureExtendedArgument) != 0;   // since kernel 5.11

  const auto& sq = parameters.submission;
  const auto& cq = parameters.completion;
  const std::size_t rings_size =
      std::max<std::size_t>(sq.array + parameters.submission_entries * sizeof(std::uint32_t),
                            cq.entries + parameters.completion_entries * sizeof(UringCompletion));
  void* rings = ::mmap(nullptr, rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                       ring_.get(), kOffsetRings);
  if (rings == MAP_FAILED) return errno;
  rings_ = static_cast<std::byte*>(rings);
  rings_size_ = rings_size;
  const std::size_t submissions_size = parameters.submission_entries * sizeof(UringSubmission);
  void* submissions = ::mmap(nullptr, submissions_size, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_POPULATE, ring_.get(), kOffsetSubmissions);
  if (submissions == MAP_FAILED) return errno;
  submissions_ = static_cast<UringSubmission*>(submissions);
  submissions_size_ = submissions_size;

  const auto word = [&](std::uint32_t offset) {
    return reinterpret_cast<std::uint32_t*>(rings_ + offset);
  };
  submission_head_ = word(sq.head);
  submission_tail_ = word(sq.tail);
  submission_mask_ = *word(sq.ring_mask);
  submission_array_ = word(sq.array);
  completion_head_ = word(cq.head);
  completion_tail_ = word(cq.tail);
  completion_mask_ = *word(cq.ring_mask);
  completions_ = reinterpret_cast<UringCompletion*>(rings_ + cq.entries);
  entries_ = parameters.submission_entries;
  return 0;
}

Uring::~Uring() {
  if (submissions_ != nullptr) ::munmap(submissions_, submissions_size_);
  if (rings_ != nullptr) ::munmap(rings_, rings_size_);
}

bool Uring::try_read(int fd, std::byte* destination, std::uint32_t size, std::uint64_t offset,
                     std::uint64_t tag, Manner manner) {
  UringSubmission request{};
  request.opcode = kOpcodeRead;
  if (manner.in_background) request.flags |= kSubmissionAsync;
  if (manner.in_turn) request.flags |= kSubmissionDrain;
  request.fd = fd;
  request.offset = offset;
  request.address = reinterpret_cast<std::uintptr_t>(destination);
  request.size = size;
  request.tag = tag;
  return try_queue(request);
}

bool Uring::try_write(int fd, const std::byte* source, std::uint32_t size, std::uint64_t offset,
                      std::uint64_t tag) {
  UringSubmission request{};
  request.opcode = kOpcodeWrite;
  request.fd = fd;
  request.offset = offset;
  request.address = reinterpret_cast<std::uintptr_t>(source);
  request.size = size;
  request.tag = tag;
  return try_queue(request);
}

bool Uring::try_queue(const UringSubmission& request) {
  const std::uint32_t tail = *submission_tail_;  // only this thread writes it
  if (tail - load_acquire(submission_head_) >= entries_) return false;
  const std::uint32_t index = tail & submission_mask_;
  submissions_[index] = request;
  submission_array_[index] = index;
  store_release(submission_tail_, tail + 1);
  ++queued_;
  return true;
}

int Uring::submit(unsigned wait_for) {
  return enter(wait_for, 0, nullptr, 0);
}

int Uring::submit_for(std::chrono::nanoseconds timeout) {
  constexpr std::int64_t kSecond = 1'000'000'000;
  const Timespec time{timeout.count() / kSecond, timeout.count() % kSecond};
  const EnterArgument argument{0, 0, 0, reinterpret_cast<std::uintptr_t>(&time)};
  const int error = enter(1, kEnterExtendedArgument, &argument, sizeof(argument));
  return error == ETIME ? 0 : error;
}

int Uring::enter(unsigned wait_for, unsigned flags, const void* argument,
                 std::size_t argument_size) {
  do {
    // GETEVENTS even when nothing is waited for: with deferred task work it posts completions.
    const long count = ::syscall(kEnter, ring_.get(), queued_, wait_for, kEnterGetEvents | flags,
                                 argument, argument_size);
    if (count >= 0) {
      queued_ -= std::min(queued_, static_cast<std::uint32_t>(count));
    } else if (errno != EINTR) {
      return errno;
    }
  } while (queued_ != 0);
  return 0;
}

bool Uring::try_take(Result& result) {
  const std::uint32_t head = *completion_head_;  // only this thread writes it
  if (head == load_acquire(completion_tail_)) return false;
  const UringCompletion& entry = completions_[head & completion_mask_];
  result = Result{entry.tag, entry.result};
  store_release(completion_head_, head + 1);
  return true;
}

}  // namespace sllm::io
