// What links needed for one transfer, kept for the next: the driver takes milliseconds to make it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "lanes/link_resources.hpp"

namespace sllm::lanes {

// Thread-safe.
class LinkStock {
 public:
  // What may lie idle for the link of one device; what was used last stays.
  static constexpr std::uint64_t kIdleBytesMax = 256 << 20;
  static constexpr std::size_t kIdleMax = 4;

  LinkStock() = default;
  LinkStock(const LinkStock&) = delete;
  LinkStock& operator=(const LinkStock&) = delete;

  // Returns what is there, or makes it; where there is no room for that, what is idle goes.
  std::unique_ptr<LinkResources> take(const LinkNeeds& needs);
  // Nothing may be under way in it, and nothing have gone wrong.
  void put(std::unique_ptr<LinkResources> resources);
  std::size_t idle() const;

 private:
  bool has_room(const LinkNeeds& needs) const;
  // False if nothing was idle.
  bool drop_idle();

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<LinkResources>> idle_;  // the one used last is last
};

}  // namespace sllm::lanes
