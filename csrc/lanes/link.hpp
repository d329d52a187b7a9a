// One device's link to the host: what carries batches to targets on it, or through it to others.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "lanes/decode_site.hpp"
#include "lanes/link_resources.hpp"
#include "lanes/link_stock.hpp"
#include "lanes/target_queue.hpp"
#include "shim/cuda_stream.hpp"

namespace sllm::lanes {

// Called by the threads of links.
struct Events {
  std::function<void(std::size_t step, std::uint64_t bytes)> complete;
  // The GPU found one of these segments of a step corrupt. They are in host memory still.
  std::function<void(std::size_t step, std::span<const CodedSegment> segments)> corrupt;
  std::function<void(std::exception_ptr)> failed;
};

// A queue that a link serves.
struct Service {
  TargetQueue* queue;
  std::size_t number;  // the link's among those that serve it
  int target;          // the device that the queue's jobs go to
  ClaimLimits limits;
  bool decodes;  // whether there are coded segments in it
};

// At most kInFlight batches are in the device's hands. Where the target is another device, a batch
// goes to a staging slot here, and from there on a second stream to the target's memory.
class Link {
 public:
  // What it needs it takes from the stock, and puts back, where there is one.
  Link(int ordinal, std::vector<Service> services, const Events& events, LinkStock* stock);
  // Waits for all that was enqueued.
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Begins to claim batches, in a thread that then sees them complete.
  void start();
  // Enqueues what is to be had, up to kInFlight. Any thread may call it.
  void pump();
  // Claims nothing more, and returns when all that was enqueued is complete and reported.
  void finish();

 private:
  struct Slot {
    Batch batch;
    const cuda::Event* done = nullptr;
    const DecodeSite* site = nullptr;  // where the batch is decoded
  };

  void run();
  void watch();
  void close();
  void pump_locked();
  void enqueue(unsigned index, std::size_t service);
  void enqueue_raw(unsigned index);
  void enqueue_through(unsigned index, int target);
  void enqueue_coded(unsigned index, int target, DecodeSite& site);
  void send(const RawCopy& copy, int source_device);
  void report(const Batch& batch, bool is_corrupt);

  const int ordinal_;
  const std::vector<Service> services_;
  const Events& events_;
  LinkStock* const stock_;                    // null: nothing is kept
  std::unique_ptr<LinkResources> resources_;  // got by the thread; null until then
  std::array<Slot, kInFlight> slots_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::uint64_t issued_ = 0;
  std::uint64_t done_ = 0;
  bool open_ = false;
  bool closed_ = false;
  bool broken_ = false;  // what was enqueued may not have ended as it should
  std::atomic<bool> full_{false};
  std::thread thread_;
};

}  // namespace sllm::lanes
