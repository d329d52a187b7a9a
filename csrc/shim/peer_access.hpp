// Where memory is, and copies of it from one device to another.
#pragma once

#include <cstddef>
#include <string>

#include "shim/cuda_driver.hpp"

namespace sllm::cuda {

inline constexpr int kHostMemory = -1;

// The device whose memory an address is in, or kHostMemory.
int memory_device(DevicePointer address);

// Lets a device's copies reach a peer's memory directly: true from then on, for the whole process.
// False where the machine or the driver does not offer it: the driver stages copies between the
// two through host memory then.
bool try_enable_peer_access(int ordinal, int peer);

struct DevicePlace {
  int ordinal;
  DevicePointer address;
};

// Enqueues a copy between devices, or within one, on a stream of either; its context is current.
void copy_between_devices(DevicePlace from, DevicePlace to, std::size_t size, StreamHandle stream);

}  // namespace sllm::cuda
