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
      words_(kPageSize, true) {
  for (unsigned i = 0; i < slots; ++i) {
    done_.push_back(std::make_unique<cuda::Event>(ordinal));
    streams_.push_back(std::make_unique<cuda::Stream>(ordinal));
  }
  cuda::ContextScope scope(ordinal);
  const auto memset = cuda::require(cuda::driver().memset_d32_async, "cuMemsetD32Async");
  cuda::check(memset(flag(0), 0, slots, streams_[0]->handle()), "cuMemsetD32Async");
  streams_[0]->drain();
}

void DecodeSite::drain() const noexcept {
  for (const auto& stream : streams_) stream->drain();
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
  const cuda::Stream& stream = *streams_[index];
  cuda::ContextScope scope(ordinal_);
  staged.hold(stream);
  decoder_.launch(jobs, flag(index), stream.handle());
  const auto word = reinterpret_cast<cuda::DevicePointer>(words_.address() + index * kFlagSize);
  cuda::check(cuda::require(cuda::driver().memcpy_async, "cuMemcpyAsync")(
                  word, flag(index), kFlagSize, stream.handle()),
              "cuMemcpyAsync of a flag");
  done_[index]->record(stream);
}

bool DecodeSite::found_corrupt(unsigned index) const {
  return reinterpret_cast<const std::uint32_t*>(words_.address())[index] != 0;
}

}  // namespace sllm::lanes
