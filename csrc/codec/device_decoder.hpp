// Decoding of coded segments on a GPU, where they are and where the tensors will be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "shim/cuda_driver.hpp"

namespace sllm::codec {

// A segment in device memory. Both addresses are multiples of kDeviceAlignment.
struct DeviceSegment {
  cuda::DevicePointer stored;
  cuda::DevicePointer raw;
  std::uint32_t stored_size;
  std::uint32_t raw_size;
};

inline constexpr std::size_t kDeviceAlignment = 16;
inline constexpr char kDecodeKernel[] = "sllm_decode_segments";
// A launch's segments go by value as its first parameter, whose parameters have 4 KiB in all; the
// second is the address of a uint32 that becomes 1 if a segment is corrupt.
inline constexpr std::size_t kSegmentsPerLaunch = 160;

struct DecodeJobs {
  std::uint32_t count;
  DeviceSegment segments[kSegmentsPerLaunch];
};
static_assert(sizeof(DeviceSegment) == 24 && sizeof(DecodeJobs) == 8 + 24 * kSegmentsPerLaunch);
static_assert(sizeof(DecodeJobs) + sizeof(cuda::DevicePointer) <= 4096);

// One per device, made at first use and kept for the process.
class DeviceDecoder {
 public:
  // Loads the kernel. Throws DriverError where there is no driver, or one that cannot run it.
  static DeviceDecoder& of(int ordinal);

  DeviceDecoder(const DeviceDecoder&) = delete;
  DeviceDecoder& operator=(const DeviceDecoder&) = delete;

  // Enqueues the decoding of segments on a stream of this device, in as many launches as it takes.
  // `errors` is the device address of a uint32: it becomes 1 if a segment is corrupt, and is not
  // written otherwise. Throws std::invalid_argument for addresses that are not aligned.
  void launch(std::span<const DeviceSegment> segments, cuda::DevicePointer errors,
              cuda::StreamHandle stream);

 private:
  explicit DeviceDecoder(int ordinal);

  int ordinal_;
  cuda::FunctionHandle kernel_ = nullptr;
};

// Decodes segments that are in a device's memory, and waits. Throws SystemError (EBADMSG) if one of
// them is corrupt.
void decode_on_device(int ordinal, std::span<const DeviceSegment> segments);

}  // namespace sllm::codec
