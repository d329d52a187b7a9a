// The device side of a transfer: its targets, and every link that carries bytes to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "lanes/link.hpp"
#include "lanes/target_queue.hpp"

namespace sllm::lanes {

struct Target {
  int ordinal;
  std::vector<int> via;  // other devices whose links may be used
  bool has_work;
  bool has_coded;
  std::uint64_t bytes;  // that will be pushed, as they travel
};

// Only targets with work get links, and only links that serve one are opened.
class LinkSet {
 public:
  // Throws DriverError where a device that is to be gone through cannot reach the target's memory.
  // The stock, which may be null, outlives this.
  LinkSet(std::vector<Target> targets, Events events, LinkStock* stock);
  LinkSet(const LinkSet&) = delete;
  LinkSet& operator=(const LinkSet&) = delete;

  void start();
  // Hands a target its jobs; links that are free begin at once. Any thread may call it.
  void push(std::size_t target, std::span<const Job> jobs);
  // Nothing more is sent; what was enqueued goes on.
  void stop();
  // Returns when all that was enqueued is complete and reported. Nothing is sent afterwards.
  void finish();

 private:
  std::vector<Service> services_of(int ordinal) const;
  std::uint64_t joined_bytes() const;

  const std::vector<Target> targets_;
  const Events events_;
  std::vector<std::unique_ptr<TargetQueue>> queues_;  // by target; null where there is no work
  std::vector<std::unique_ptr<Link>> links_;
  std::vector<std::vector<Link*>> links_of_;  // by target: its own first
};

}  // namespace sllm::lanes
