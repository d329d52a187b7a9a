#include "shim/cuda_device.hpp"

#include <atomic>
#include <map>
#include <mutex>

namespace sllm::cuda {
namespace {

constexpr unsigned kRegisterPortable = 1;

std::string on_device(const std::string& call, int ordinal) {
  return call + " on device " + std::to_string(ordinal);
}

DeviceHandle device_handle(int ordinal) {
  const Driver& d = driver();
  int count = 0;
  check(d.device_get_count(&count), "cuDeviceGetCount");
  if (ordinal < 0 || ordinal >= count) {
    throw DriverError(kInvalidDevice, "there is no device " + std::to_string(ordinal) + " among " +
                                          std::to_string(count));
  }
  DeviceHandle handle = 0;
  check(d.device_get(&handle, ordinal), on_device("cuDeviceGet", ordinal));
  return handle;
}

// The primary contexts this process holds. Never released: a context costs half a GiB to make
// again, and its memory may outlive the interpreter's orderly part.
class Contexts {
 public:
  // Those of several devices are made at the same time: each takes some tenths of a second.
  ContextHandle get(int ordinal) {
    Entry& entry = find(ordinal);
    if (const ContextHandle made = entry.handle.load()) return made;
    std::lock_guard lock(entry.making);
    if (const ContextHandle made = entry.handle.load()) return made;
    ContextHandle handle = nullptr;
    check(driver().primary_context_retain(&handle, device_handle(ordinal)),
          on_device("cuDevicePrimaryCtxRetain", ordinal));
    entry.handle.store(handle);
    return handle;
  }

  int any() {
    std::lock_guard lock(mutex_);
    for (const auto& [ordinal, entry] : entries_) {
      if (entry.handle.load() != nullptr) return ordinal;
    }
    return -1;
  }

 private:
  struct Entry {
    std::mutex making;
    std::atomic<ContextHandle> handle{nullptr};
  };

  Entry& find(int ordinal) {
    std::lock_guard lock(mutex_);
    return entries_[ordinal];
  }

  std::mutex mutex_;
  std::map<int, Entry> entries_;  // none is ever removed
};

Contexts& contexts() {
  static Contexts* const instance = new Contexts();
  return *instance;
}

}  // namespace

int device_count() {
  int count = 0;
  check(driver().device_get_count(&count), "cuDeviceGetCount");
  return count;
}

std::string device_uuid(int ordinal) {
  Uuid uuid{};
  check(driver().device_get_uuid(&uuid, device_handle(ordinal)),
        on_device("cuDeviceGetUuid", ordinal));
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[uuid.bytes[i] >> 4];
    text += kDigits[uuid.bytes[i] & 15];
  }
  return text;
}

std::string device_name(int ordinal) {
  char name[256] = {};
  check(driver().device_get_name(name, sizeof(name) - 1, device_handle(ordinal)),
        on_device("cuDeviceGetName", ordinal));
  return name;
}

MemoryInfo device_memory(int ordinal) {
  ContextScope scope(ordinal);
  MemoryInfo info{};
  check(driver().mem_get_info(&info.free, &info.total), on_device("cuMemGetInfo", ordinal));
  return info;
}

ContextScope::ContextScope(int ordinal) {
  check(driver().context_push(contexts().get(ordinal)), on_device("cuCtxPushCurrent", ordinal));
}

ContextScope::~ContextScope() {
  ContextHandle popped = nullptr;
  // At exit the driver may be gone already; there is nothing left to restore then.
  static_cast<void>(driver().context_pop(&popped));
}

ContextHandle primary_context(int ordinal) {
  return contexts().get(ordinal);
}

int any_active_device() {
  const int held = contexts().any();
  if (held >= 0) return held;
  const Driver& d = driver();
  if (d.primary_context_get_state == nullptr) return 0;
  const int count = device_count();
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    unsigned flags = 0;
    int active = 0;
    const Result result = d.primary_context_get_state(device_handle(ordinal), &flags, &active);
    if (result == kSuccess && active != 0) return ordinal;
  }
  return 0;
}

void synchronize(int ordinal) {
  ContextScope scope(ordinal);
  check(driver().context_synchronize(), "cuCtxSynchronize on device " + std::to_string(ordinal));
}

void copy_to_host(int ordinal, DevicePointer source, void* destination, std::size_t size) {
  ContextScope scope(ordinal);
  check(driver().copy_to_host(destination, source, size), on_device("cuMemcpyDtoH", ordinal));
}

void copy_to_device(int ordinal, const void* source, DevicePointer destination, std::size_t size) {
  ContextScope scope(ordinal);
  check(driver().copy_to_device(destination, source, size), on_device("cuMemcpyHtoD", ordinal));
}

HostRegistration::HostRegistration(void* address, std::size_t size)
    : address_(address), ordinal_(any_active_device()) {
  ContextScope scope(ordinal_);
  check(driver().host_register(address, size, kRegisterPortable),
        "cuMemHostRegister of " + std::to_string(size) + " bytes");
}

HostRegistration::~HostRegistration() {
  try {
    ContextScope scope(ordinal_);
    static_cast<void>(driver().host_unregister(address_));
  } catch (const DriverError&) {
    // The driver is shutting down and takes its registrations with it.
  }
}

}  // namespace sllm::cuda
