// A target's side of decoding: slots for coded bytes, each with a stream that decodes what is in
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "codec/device_decoder.hpp"
#include "lanes/slot_layout.hpp"
#include "pool/host_memory.hpp"
#include "shim/cuda_driver.hpp"
#include "shim/cuda_memory.hpp"
#include "shim/cuda_stream.hpp"

namespace sllm::lanes {

class DecodeSite {
 public:
  DecodeSite(int ordinal, std::uint64_t slot_bytes, unsigned slots);
  // Waits for what was enqueued here; others must have stopped to write to the slots.
  ~DecodeSite() = default;
  DecodeSite(const DecodeSite&) = delete;
  DecodeSite& operator=(const DecodeSite&) = delete;

  cuda::DevicePointer slot(unsigned index) const { return memory_.address() + index * slot_bytes_; }
  // Enqueues the decoding of a slot's segments once `staged` is reached. The slot must be free.
  void decode(unsigned index, std::span<const CodedSegment> segments, const SlotLayout& layout,
              const cuda::Event& staged);
  // Reached when the slot is decoded and free again.
  const cuda::Event& done(unsigned index) const { return *done_[index]; }
  // Once done: whether one of its segments was corrupt.
  bool found_corrupt(unsigned index) const;
  void drain() const noexcept;

 private:
  cuda::DevicePointer flag(unsigned index) const;

  int ordinal_;
  std::uint64_t slot_bytes_;
  codec::DeviceDecoder& decoder_;
  cuda::DeviceBuffer memory_;  // the slots, then a flag for each
  pool::HostBuffer words_;     // the flags as the host sees them
  std::vector<std::unique_ptr<cuda::Event>> done_;
  // By slot: one may have work for a tenth of the GPU, so they are decoded side by side. The last
  // member: what they run uses the others.
  std::vector<std::unique_ptr<cuda::Stream>> streams_;
};

}  // namespace sllm::lanes
