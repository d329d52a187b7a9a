// Devices: their primary contexts, retained at first use, and what they say of themselves.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "shim/cuda_driver.hpp"

namespace sllm::cuda {

int device_count();
std::string device_uuid(int ordinal);
std::string device_name(int ordinal);

struct MemoryInfo {
  std::size_t free;
  std::size_t total;
};
MemoryInfo device_memory(int ordinal);

// Makes a device's primary context current for a scope, and restores what was current before, so
// that a caller's framework does not find itself on another device.
class ContextScope {
 public:
  explicit ContextScope(int ordinal);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;
};

// The device's primary context, retained.
ContextHandle primary_context(int ordinal);

// A device whose context exists already, else 0: where a call needs any context at all.
int any_active_device();

// Waits for everything that this process has given the device to do.
void synchronize(int ordinal);

void copy_to_host(int ordinal, DevicePointer source, void* destination, std::size_t size);
void copy_to_device(int ordinal, const void* source, DevicePointer destination, std::size_t size);

// Host memory registered with the driver for as long as this lives.
class HostRegistration {
 public:
  HostRegistration(void* address, std::size_t size);
  ~HostRegistration();
  HostRegistration(const HostRegistration&) = delete;
  HostRegistration& operator=(const HostRegistration&) = delete;

 private:
  void* address_;
  int ordinal_;
};

}  // namespace sllm::cuda
