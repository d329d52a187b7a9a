#include "lanes/link_set.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "shim/peer_access.hpp"

namespace sllm::lanes {
namespace {

// Copies of steps that nobody waits for are joined up to this: a link loses some 5 us between two.
constexpr std::uint64_t kJoinedBytes = 256 << 20;
// Several links at once share the host's memory better in smaller copies.
constexpr std::uint64_t kJoinedBytesOfSeveral = 32 << 20;
// What links that share a target take at a time.
constexpr std::uint64_t kPieceBytes = 16 << 20;
// Coded bytes on a target: a slot of a link at most, and all slots of all links.
constexpr std::uint64_t kCodedSlotBytes = 32 << 20;
constexpr std::uint64_t kCodedBytes = 128 << 20;

std::uint64_t coded_slot_bytes(std::uint64_t links) {
  const std::uint64_t share = kCodedBytes / (links * kInFlight);
  return std::min(kCodedSlotBytes, share / kSlotAlignment * kSlotAlignment);
}

void require_peer_access(int ordinal, int target) {
  if (cuda::try_enable_peer_access(ordinal, target)) return;
  throw cuda::DriverError(cuda::kPeerAccessUnsupported,
                          "device " + std::to_string(ordinal) +
                              " cannot reach the memory of device " + std::to_string(target) +
                              ", so nothing can go through it: leave it out of the fan-in");
}

}  // namespace

LinkSet::LinkSet(std::vector<Target> targets, Events events, LinkStock* stock)
    : targets_(std::move(targets)), events_(std::move(events)) {
  std::set<int> ordinals;
  for (const Target& target : targets_) {
    const std::size_t links = 1 + target.via.size();
    queues_.push_back(target.has_work ? std::make_unique<TargetQueue>(links, target.bytes)
                                      : nullptr);
    if (!target.has_work) continue;
    ordinals.insert(target.ordinal);
    for (const int ordinal : target.via) {
      require_peer_access(ordinal, target.ordinal);
      ordinals.insert(ordinal);
    }
  }
  std::map<int, Link*> by_ordinal;
  for (const int ordinal : ordinals) {
    links_.push_back(std::make_unique<Link>(ordinal, services_of(ordinal), events_, stock));
    by_ordinal[ordinal] = links_.back().get();
  }
  for (const Target& target : targets_) {
    std::vector<Link*>& links = links_of_.emplace_back();
    if (!target.has_work) continue;
    links.push_back(by_ordinal[target.ordinal]);
    for (const int ordinal : target.via) links.push_back(by_ordinal[ordinal]);
  }
}

// A link's own targets come first: it helps others when it has nothing to do.
std::vector<Service> LinkSet::services_of(int ordinal) const {
  std::vector<Service> services;
  for (const bool own : {true, false}) {
    for (std::size_t i = 0; i < targets_.size(); ++i) {
      const Target& target = targets_[i];
      const auto via = std::find(target.via.begin(), target.via.end(), ordinal);
      if (!target.has_work || (own ? target.ordinal != ordinal : via == target.via.end())) continue;
      const auto number = own ? 0 : static_cast<std::size_t>(via - target.via.begin()) + 1;
      const std::uint64_t links = 1 + target.via.size();
      const ClaimLimits limits{.raw_bytes = links == 1 ? joined_bytes() : kPieceBytes,
                               .coded_bytes = coded_slot_bytes(links),
                               .from_host_only = !own};
      services.push_back({queues_[i].get(), number, target.ordinal, limits, target.has_coded});
    }
  }
  return services;
}

std::uint64_t LinkSet::joined_bytes() const {
  const auto working = std::count_if(targets_.begin(), targets_.end(),
                                     [](const Target& target) { return target.has_work; });
  return working == 1 ? kJoinedBytes : kJoinedBytesOfSeveral;
}

void LinkSet::start() {
  for (const auto& link : links_) link->start();
}

void LinkSet::push(std::size_t target, std::span<const Job> jobs) {
  queues_[target]->push(jobs);
  for (Link* link : links_of_[target]) link->pump();
}

void LinkSet::stop() {
  for (const auto& queue : queues_) {
    if (queue != nullptr) queue->stop();
  }
}

void LinkSet::finish() {
  for (const auto& link : links_) link->finish();
}

}  // namespace sllm::lanes
