#include "shim/cuda_memory.hpp"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>

#include "shim/cuda_device.hpp"

namespace sllm::cuda {
namespace {

// The driver carves small allocations out of 2 MiB blocks and an IPC handle exposes the block:
// whole blocks keep other allocations out of a client's sight.
constexpr std::size_t kBlockSize = 2 << 20;
constexpr unsigned kLazyPeerAccess = 1;

// The driver opens a handle once per process: a second opener shares the first one's mapping.
class OpenHandles {
 public:
  struct Range {
    DevicePointer address;
    std::size_t size;
  };

  // Handles of several devices are opened and closed at the same time.
  Range open(int ordinal, const std::string& handle) {
    const Key key{ordinal, handle};
    const std::shared_ptr<Entry> entry = enter(key);
    std::lock_guard lock(entry->changing);
    if (entry->is_open) return entry->range;
    try {
      entry->range = open_range(ordinal, handle);
    } catch (...) {
      leave(key);
      drop_unused(key);
      throw;
    }
    entry->is_open = true;
    return entry->range;
  }

  void close(int ordinal, const std::string& handle) {
    const Key key{ordinal, handle};
    const std::shared_ptr<Entry> entry = find(key);
    if (entry == nullptr) return;
    std::lock_guard lock(entry->changing);
    if (!leave(key)) return;
    entry->is_open = false;
    ContextScope scope(ordinal);
    static_cast<void>(driver().ipc_close_mem_handle(entry->range.address));
    drop_unused(key);  // and not before: who opens it again waits until it is closed
  }

  void add_exported(const std::string& handle) {
    std::lock_guard lock(mutex_);
    exported_.insert(handle);
  }

  void remove_exported(const std::string& handle) {
    std::lock_guard lock(mutex_);
    exported_.erase(handle);
  }

 private:
  using Key = std::pair<int, std::string>;
  struct Entry {
    std::mutex changing;  // of `is_open` and `range`: held while the driver opens or closes it
    bool is_open = false;
    Range range{};
    std::size_t count = 0;  // of those who have it or wait for it; `mutex_` guards it
  };

  std::shared_ptr<Entry> enter(const Key& key) {
    std::lock_guard lock(mutex_);
    if (exported_.contains(key.second)) {
      throw DriverError(kInvalidContext,
                        "this process exported this IPC handle: use the buffer itself");
    }
    std::shared_ptr<Entry>& entry = entries_[key];
    if (entry == nullptr) entry = std::make_shared<Entry>();
    ++entry->count;
    return entry;
  }

  std::shared_ptr<Entry> find(const Key& key) {
    std::lock_guard lock(mutex_);
    const auto found = entries_.find(key);
    return found == entries_.end() ? nullptr : found->second;
  }

  // True when that was the last one.
  bool leave(const Key& key) {
    std::lock_guard lock(mutex_);
    return --entries_.at(key)->count == 0;
  }

  void drop_unused(const Key& key) {
    std::lock_guard lock(mutex_);
    const auto found = entries_.find(key);
    if (found != entries_.end() && found->second->count == 0) entries_.erase(found);
  }

  static Range open_range(int ordinal, const std::string& bytes) {
    IpcHandle handle{};
    std::memcpy(handle.bytes, bytes.data(), sizeof(handle.bytes));
    const Driver& d = driver();
    ContextScope scope(ordinal);
    Range range{};
    check(d.ipc_open_mem_handle(&range.address, handle, kLazyPeerAccess),
          "cuIpcOpenMemHandle on device " + std::to_string(ordinal));
    DevicePointer base = 0;
    const Result result = d.mem_get_address_range(&base, &range.size, range.address);
    if (result != kSuccess) {
      static_cast<void>(d.ipc_close_mem_handle(range.address));
      check(result, "cuMemGetAddressRange of an IPC mapping");
    }
    range.size -= static_cast<std::size_t>(range.address - base);
    return range;
  }

  std::mutex mutex_;
  std::map<Key, std::shared_ptr<Entry>> entries_;
  std::set<std::string> exported_;
};

OpenHandles& open_handles() {
  static OpenHandles* const instance = new OpenHandles();
  return *instance;
}

}  // namespace

DeviceBuffer::DeviceBuffer(int ordinal, std::size_t size) : ordinal_(ordinal), size_(size) {
  if (size == 0) throw std::invalid_argument("a device buffer has at least one byte");
  ContextScope scope(ordinal);
  const std::size_t rounded = (size + kBlockSize - 1) / kBlockSize * kBlockSize;
  check(driver().mem_alloc(&address_, rounded),
        "cuMemAlloc of " + std::to_string(rounded) + " bytes on device " + std::to_string(ordinal));
}

DeviceBuffer::~DeviceBuffer() {
  try {
    if (!exported_.empty()) open_handles().remove_exported(exported_);
    ContextScope scope(ordinal_);
    static_cast<void>(driver().mem_free(address_));
  } catch (const DriverError&) {
    // The driver is shutting down and takes the memory with it.
  }
}

std::string DeviceBuffer::ipc_handle() {
  IpcHandle handle{};
  ContextScope scope(ordinal_);
  check(driver().ipc_get_mem_handle(&handle, address_),
        "cuIpcGetMemHandle on device " + std::to_string(ordinal_));
  std::string bytes(handle.bytes, sizeof(handle.bytes));
  open_handles().add_exported(bytes);
  exported_ = bytes;
  return bytes;
}

DeviceMapping::DeviceMapping(int ordinal, const std::string& handle, int lease)
    : ordinal_(ordinal), handle_(handle), lease_(duplicate(lease)) {
  if (handle.size() != sizeof(IpcHandle)) {
    throw std::invalid_argument("a CUDA IPC handle has 64 bytes, this one has " +
                                std::to_string(handle.size()));
  }
  const OpenHandles::Range range = open_handles().open(ordinal, handle);
  address_ = range.address;
  size_ = range.size;
}

DeviceMapping::~DeviceMapping() {
  try {
    if (lease_.valid()) synchronize(ordinal_);
  } catch (const DriverError&) {
    // A stream is being captured, or the driver is shutting down: nothing can be waited for.
  }
  try {
    open_handles().close(ordinal_, handle_);
  } catch (const DriverError&) {
    // The driver is shutting down and takes the mapping with it.
  }
}

}  // namespace sllm::cuda
