// Reads that are asked for ahead and go on while whoever asked computes. There is no thread: the
// kernel has the requests, so the disk waits for nobody who has no processor.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "io/file.hpp"
#include "io/uring.hpp"

namespace sllm::io {

class ReadQueue {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether the disk has all requests at once, or one after another. A virtual disk may work off
  // all it has been given before it says that anything is done: what is asked for later then
  // delays what was asked for earlier.
  enum class Order { kTogether, kInTurns };

  struct Read {
    std::size_t file;
    std::uint64_t offset;
    std::uint64_t size;
    std::uint64_t place;  // in the memory
  };
  struct Memory {
    std::shared_ptr<void> owner;
    std::byte* address;
    std::size_t size;
  };

  // Null where the kernel has no io_uring that can be waited for with a deadline.
  static std::unique_ptr<ReadQueue> create(std::vector<std::shared_ptr<const File>> files,
                                           Order order);
  // Waits for what is in flight.
  ~ReadQueue();
  ReadQueue(const ReadQueue&) = delete;
  ReadQueue& operator=(const ReadQueue&) = delete;

  // Begins to read into memory, which is kept until then; returns the number to wait for. What lies
  // in the memory behind the end of a read, up to its page's end, may be written too.
  std::uint64_t begin(std::span<const Read> reads, Memory memory);
  // False if the time is up before all is read; throws SystemError once for what went wrong. A
  // number is known until one of these: true, or an error.
  bool wait(std::uint64_t number, Clock::time_point deadline);
  // Waits for what is in flight, and forgets everything.
  void drain() noexcept;

 private:
  // Some reads under way, and the first error of one.
  struct Batch {
    Memory memory;
    std::size_t pending = 0;
    std::exception_ptr error;
  };
  struct Request {
    const File* file = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
    std::uint64_t place = 0;
    Batch* batch = nullptr;
    bool direct = false;
  };

  ReadQueue(std::unique_ptr<Uring> ring, std::vector<std::shared_ptr<const File>> files,
            Order order)
      : ring_(std::move(ring)), files_(std::move(files)), order_(order) {}

  void check(std::span<const Read> reads, const Memory& memory) const;
  void cut(const Read& read, Batch& batch);
  void submit_waiting();
  void start(Request request);
  void reap();
  void finish(const Uring::Result& result);

  const std::unique_ptr<Uring> ring_;
  const std::vector<std::shared_ptr<const File>> files_;
  const Order order_;

  std::mutex mutex_;  // of the members below, and of the ring
  std::unordered_map<std::uint64_t, Batch> batches_;
  std::uint64_t next_ = 0;
  std::deque<Request> waiting_;
  std::vector<Request> requests_;  // by their tags
  std::vector<std::size_t> free_;
  std::size_t in_flight_ = 0;
};

}  // namespace sllm::io
