#include "lanes/link_resources.hpp"

#include <utility>

namespace sllm::lanes {

std::uint64_t LinkNeeds::bytes() const {
  std::uint64_t slot_bytes = staging_slot_bytes;
  for (const Site& site : sites) slot_bytes += site.slot_bytes;
  return kInFlight * slot_bytes;
}

LinkResources::LinkResources(LinkNeeds needs) : needs_(std::move(needs)), copies_(needs_.ordinal) {
  if (needs_.staging_slot_bytes != 0) {
    const std::uint64_t bytes = kInFlight * needs_.staging_slot_bytes;
    staging_ = std::make_unique<cuda::DeviceBuffer>(needs_.ordinal, bytes);
    moves_.emplace(needs_.ordinal);
  }
  for (const LinkNeeds::Site& site : needs_.sites) {
    sites_.push_back(site.slot_bytes == 0
                         ? nullptr
                         : std::make_unique<DecodeSite>(site.target, site.slot_bytes, kInFlight));
  }
}

LinkResources::~LinkResources() {
  copies_.drain();
  if (moves_) moves_->drain();
  for (const auto& site : sites_) {
    if (site != nullptr) site->drain();
  }
}

LinkResources::Slot& LinkResources::slot(unsigned index) {
  std::unique_ptr<Slot>& found = slots_[index];
  if (found == nullptr) {
    found = std::make_unique<Slot>(needs_.ordinal);
    if (moves_) found->moved.emplace(needs_.ordinal);
  }
  return *found;
}

}  // namespace sllm::lanes
