// A minimal io_uring for reads and writes, by raw system calls. One thread uses a ring at a time.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "io/descriptor.hpp"

namespace sllm::io {

struct UringSubmission;
struct UringCompletion;

class Uring {
 public:
  struct Result {
    std::uint64_t tag;
    int result;  // bytes, or a negated errno
  };

  // Who may submit: the first thread that does, which is cheaper, or one after another.
  enum class Users { kOneThread, kAnyThread };
  // How a read is made: by a thread of the kernel, or as part of submitting it; and whether it
  // waits until everything queued before is complete.
  struct Manner {
    bool in_background = false;
    bool in_turn = false;
  };

  // Null where this kernel or its policy refuses; `error` is then the errno.
  static std::unique_ptr<Uring> create(unsigned entries, int& error,
                                       Users users = Users::kOneThread);
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  // Queues a read; false when the submission queue is full.
  bool try_read(int fd, std::byte* destination, std::uint32_t size, std::uint64_t offset,
                std::uint64_t tag) {
    return try_read(fd, destination, size, offset, tag, Manner{});
  }
  bool try_read(int fd, std::byte* destination, std::uint32_t size, std::uint64_t offset,
                std::uint64_t tag, Manner manner);
  bool try_write(int fd, const std::byte* source, std::uint32_t size, std::uint64_t offset,
                 std::uint64_t tag);
  // Hands what is queued to the kernel and waits for `wait_for` completions. Returns 0 or an
  // errno; what was queued stays queued after an error.
  int submit(unsigned wait_for);
  // Submits and waits for one completion, for no longer than told. Only where can_time_out().
  int submit_for(std::chrono::nanoseconds timeout);
  bool can_time_out() const { return can_time_out_; }
  bool has_queued() const { return queued_ != 0; }
  // Takes one completion; false when there is none.
  bool try_take(Result& result);

 private:
  Uring() = default;
  int open(unsigned entries, Users users);
  int enter(unsigned wait_for, unsigned flags, const void* argument, std::size_t argument_size);
  bool try_queue(const UringSubmission& request);

  Descriptor ring_;
  std::byte* rings_ = nullptr;
  std::size_t rings_size_ = 0;
  UringSubmission* submissions_ = nullptr;
  std::size_t submissions_size_ = 0;
  std::uint32_t* submission_head_ = nullptr;
  std::uint32_t* submission_tail_ = nullptr;
  std::uint32_t submission_mask_ = 0;
  std::uint32_t* submission_array_ = nullptr;
  std::uint32_t* completion_head_ = nullptr;
  std::uint32_t* completion_tail_ = nullptr;
  std::uint32_t completion_mask_ = 0;
  UringCompletion* completions_ = nullptr;
  std::uint32_t entries_ = 0;
  std::uint32_t queued_ = 0;
  bool can_time_out_ = false;
};

}  // namespace sllm::io
