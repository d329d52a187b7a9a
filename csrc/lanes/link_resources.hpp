// What a link needs of devices: streams, events, and memory that batches pass through.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "lanes/decode_site.hpp"
#include "shim/cuda_memory.hpp"
#include "shim/cuda_stream.hpp"

namespace sllm::lanes {

// How many batches of a link are in the devices' hands at most: one that is done early finds work
// left.
inline constexpr unsigned kInFlight = 4;

struct LinkNeeds {
  // Where batches for a target are decoded; nothing is where a slot has no bytes.
  struct Site {
    int target;
    std::uint64_t slot_bytes;
    bool operator==(const Site&) const = default;
  };

  int ordinal;
  std::uint64_t staging_slot_bytes = 0;  // none where nothing goes to other devices
  std::vector<Site> sites;
  bool operator==(const LinkNeeds&) const = default;

  // Of device memory, on all devices together.
  std::uint64_t bytes() const;
};

class LinkResources {
 public:
  struct Slot {
    explicit Slot(int ordinal) : copied(ordinal) {}

    cuda::Event copied;                // the bytes left the host
    std::optional<cuda::Event> moved;  // they arrived at another device, where they go to one
  };

  explicit LinkResources(LinkNeeds needs);
  // Everything that is enqueued ends before any memory goes.
  ~LinkResources();
  LinkResources(const LinkResources&) = delete;
  LinkResources& operator=(const LinkResources&) = delete;

  const LinkNeeds& needs() const { return needs_; }
  const cuda::Stream& copies() const { return copies_; }
  // To other devices; only where there is staging memory.
  const cuda::Stream& moves() const { return *moves_; }
  // Made at their first use: the first copy waits for as little as possible.
  Slot& slot(unsigned index);
  // Where a batch for another device passes through.
  cuda::DevicePointer staging_slot(unsigned index) const {
    return staging_->address() + index * needs_.staging_slot_bytes;
  }
  DecodeSite& site(std::size_t index) const { return *sites_[index]; }

 private:
  const LinkNeeds needs_;
  std::array<std::unique_ptr<Slot>, kInFlight> slots_;
  std::unique_ptr<cuda::DeviceBuffer> staging_;
  std::vector<std::unique_ptr<DecodeSite>> sites_;  // by site of the needs; null where none is
  cuda::Stream copies_;
  std::optional<cuda::Stream> moves_;
};

}  // namespace sllm::lanes
