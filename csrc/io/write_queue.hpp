// Writes blocks of memory to a file in the background, with as many requests in flight as suit the
// disk, from one thread of its own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "io/aligned_memory.hpp"
#include "io/tuner.hpp"
#include "io/uring.hpp"

namespace sllm::io {

class WriteQueue {
 public:
  static constexpr std::size_t kSlabSize = 4 << 20;
  // Writes by itself what the ring did not, or throws.
  using Rewrite =
      std::function<void(const std::byte* memory, std::uint64_t size, std::uint64_t offset)>;

  // Null where io_uring is not available. `slabs_ahead`: how many slabs are filled at once.
  static std::unique_ptr<WriteQueue> create(int fd, std::size_t slabs_ahead,
                                            std::shared_ptr<Tuner> tuner, Rewrite rewrite);
  // Waits for what is in flight, and drops what is not.
  ~WriteQueue();
  WriteQueue(const WriteQueue&) = delete;
  WriteQueue& operator=(const WriteQueue&) = delete;

  // Memory for a block; waits while too much is under way. Throws the first error of a write, as
  // do push and drain.
  AlignedMemory take_slab();
  void push(AlignedMemory slab, std::uint64_t offset);
  // Returns once everything is written.
  void drain();

 private:
  struct Block {
    AlignedMemory slab;
    std::uint64_t offset = 0;
    std::uint32_t pending = 0;  // requests that are not complete
    bool submitted = false;
  };
  struct Request {
    Block* block = nullptr;
    std::uint32_t within = 0;
    std::uint32_t size = 0;
  };

  WriteQueue(int fd, std::size_t slabs_ahead, std::shared_ptr<Tuner> tuner, Rewrite rewrite)
      : fd_(fd),
        slabs_ahead_(slabs_ahead),
        tuner_(std::move(tuner)),
        rewrite_(std::move(rewrite)) {}

  void run();
  void write_all(Uring& ring);
  // The next block to write; null when there is none now, and then perhaps never again.
  std::unique_ptr<Block> next(bool wait);
  void submit(Uring& ring, std::unique_ptr<Block> block);
  void reap(Uring& ring);
  void complete(const Uring::Result& result);
  void give_back(AlignedMemory slab);
  void fail(std::exception_ptr error);
  void throw_if_failed() const;  // with the lock
  std::size_t slabs_max() const;

  const int fd_;
  const std::size_t slabs_ahead_;
  const std::shared_ptr<Tuner> tuner_;
  const Rewrite rewrite_;

  // Of the writing thread alone.
  std::vector<std::unique_ptr<Block>> active_;
  std::vector<Request> requests_;
  std::vector<std::size_t> free_requests_;
  unsigned in_flight_ = 0;

  mutable std::mutex mutex_;  // of the members below
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Block>> waiting_;
  std::vector<AlignedMemory> free_slabs_;
  std::size_t slabs_ = 0;   // that exist
  std::size_t blocks_ = 0;  // pushed and not complete
  std::exception_ptr error_;
  bool closed_ = false;

  std::thread writer_;
};

}  // namespace sllm::io
