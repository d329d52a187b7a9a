#include "lanes/link_stock.hpp"

#include <algorithm>
#include <utility>

#include "shim/cuda_driver.hpp"

namespace sllm::lanes {

std::unique_ptr<LinkResources> LinkStock::take(const LinkNeeds& needs) {
  {
    std::lock_guard lock(mutex_);
    const auto found = std::find_if(idle_.begin(), idle_.end(),
                                    [&](const auto& kept) { return kept->needs() == needs; });
    if (found != idle_.end()) {
      std::unique_ptr<LinkResources> taken = std::move(*found);
      idle_.erase(found);
      return taken;
    }
  }
  try {
    return std::make_unique<LinkResources>(needs);
  } catch (const cuda::DriverError& error) {
    if (error.code != cuda::kOutOfMemory || !drop_idle()) throw;
  }
  return std::make_unique<LinkResources>(needs);  // with the memory of what lay idle
}

bool LinkStock::drop_idle() {
  std::vector<std::unique_ptr<LinkResources>> dropped;  // and freed without the lock
  std::lock_guard lock(mutex_);
  dropped.swap(idle_);
  return !dropped.empty();
}

void LinkStock::put(std::unique_ptr<LinkResources> resources) {
  const LinkNeeds& needs = resources->needs();
  if (needs.bytes() > kIdleBytesMax) return;
  std::vector<std::unique_ptr<LinkResources>> dropped;  // and freed without the lock
  std::lock_guard lock(mutex_);
  while (!has_room(needs)) {
    const auto oldest = std::find_if(idle_.begin(), idle_.end(), [&](const auto& kept) {
      return kept->needs().ordinal == needs.ordinal;
    });
    dropped.push_back(std::move(*oldest));
    idle_.erase(oldest);
  }
  idle_.push_back(std::move(resources));
}

std::size_t LinkStock::idle() const {
  std::lock_guard lock(mutex_);
  return idle_.size();
}

bool LinkStock::has_room(const LinkNeeds& needs) const {
  std::uint64_t bytes = needs.bytes();
  std::size_t count = 1;
  for (const auto& kept : idle_) {
    if (kept->needs().ordinal != needs.ordinal) continue;
    bytes += kept->needs().bytes();
    ++count;
  }
  return bytes <= kIdleBytesMax && count <= kIdleMax;
}

}  // namespace sllm::lanes
