#include "lanes/decode_site.hpp"

#include "shim/cuda_device.hpp"

namespace sllm::lanes {
namespace {

constexpr std::size_t kFlagSize = sizeof(std::uint32_t);
constexpr std::int64_t kPageSize = 4096;

}  // namespace

DecodeSite::DecodeSite(int ordinal, std::uint64_t slot_bytes, unsigned slots)
    : ordinal_(ordinal),
      slot_bytes_(slot_bytes),
      decoder_(codec::DeviceDecoder::of(ordinal)),
      memory_(ordinal, slots * slot_bytes + slots * kFlagSize),
      words_(kPageSize, true),
      stream_(ordinal) {
  for (unsigned i = 0; i < slots; ++i) done_.push_back(std::make_unique<cuda::Event>(ordinal));
  cuda::ContextScope scope(ordinal);
  cuda::check(cuda::require(cuda::driver().memset_d32_async, "cuMemsetD32Async")(flag(0), 0, slots,
                                                                                 stream_.handle()),
              "cuMemsetD32Async");
}

cuda::DevicePointer DecodeSite::flag(unsigned index) const {
  return memory_.address() + done_.size() * slot_bytes_ + index * kFlagSize;
}

void DecodeSite::decode(unsigned index, std::span<const CodedSegment> segments,
                        const SlotLayout& layout, const cuda::Event& staged) {
  std::vector<codec::DeviceSegment> jobs;
  jobs.reserve(segments.size());
  for (std::size_t i = 0; i < segments.size(); ++i) {
    jobs.push_back({slot(index) + layout.offsets[i], segments[i].raw, segments[i].stored_size,
                    segments[i].raw_size});
  }
  cuda::ContextScope scope(ordinal_);
  staged.hold(stream_);
  decoder_.launch(jobs, flag(index), stream_.handle());
  const auto word = reinterpret_cast<cuda::DevicePointer>(words_.address() + index * kFlagSize);
  cuda::check(cuda::require(cuda::driver().memcpy_async, "cuMemcpyAsync")(
                  word, flag(index), kFlagSize, stream_.handle()),
              "cuMemcpyAsync of a flag");
  done_[index]->record(stream_);
}

bool DecodeSite::found_corrupt(unsigned index) const {
  return reinterpret_cast<const std::uint32_t*>(words_.address())[index] != 0;
}

}  // namespace sllm::lanes
