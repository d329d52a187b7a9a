// Device memory: allocated here and exported, or opened from another process's handle.
#pragma once

#include <cstddef>
#include <string>

#include "io/descriptor.hpp"
#include "shim/cuda_driver.hpp"

namespace sllm::cuda {

class DeviceBuffer {
 public:
  DeviceBuffer(int ordinal, std::size_t size);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  int device() const { return ordinal_; }
  DevicePointer address() const { return address_; }
  std::size_t size() const { return size_; }
  // 64 bytes for another process of this machine.
  std::string ipc_handle();

 private:
  int ordinal_;
  std::size_t size_;
  DevicePointer address_ = 0;
  std::string exported_;
};

// The lease, a socket to the memory's owner, is closed only after the device is done with the
// memory and it is unmapped: as long as it is open, the owner does not free it. Here it is a
// duplicate; the caller keeps its own.
class DeviceMapping {
 public:
  // Throws std::invalid_argument unless `handle` has 64 bytes.
  DeviceMapping(int ordinal, const std::string& handle, int lease = -1);
  ~DeviceMapping();
  DeviceMapping(const DeviceMapping&) = delete;
  DeviceMapping& operator=(const DeviceMapping&) = delete;

  int device() const { return ordinal_; }
  DevicePointer address() const { return address_; }
  std::size_t size() const { return size_; }

 private:
  int ordinal_;
  std::string handle_;
  Descriptor lease_;
  DevicePointer address_ = 0;
  std::size_t size_ = 0;
};

}  // namespace sllm::cuda
