#include "shim/peer_access.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "shim/cuda_device.hpp"

namespace sllm::cuda {
namespace {

constexpr int kAttributeMemoryType = 2;
constexpr int kAttributeDeviceOrdinal = 9;
constexpr unsigned kMemoryTypeDevice = 2;

bool enable(int ordinal, int peer) {
  const Driver& d = driver();
  if (d.can_access_peer == nullptr || d.peer_enable == nullptr) return false;
  DeviceHandle device = 0;
  DeviceHandle other = 0;
  check(d.device_get(&device, ordinal), "cuDeviceGet");
  check(d.device_get(&other, peer), "cuDeviceGet");
  int possible = 0;
  check(d.can_access_peer(&possible, device, other), "cuDeviceCanAccessPeer");
  if (possible == 0) return false;
  const ContextHandle target = primary_context(peer);
  ContextScope scope(ordinal);
  const Result result = d.peer_enable(target, 0);
  if (result == kPeerAccessAlreadyEnabled) return true;  // by the caller's framework
  check(result, "cuCtxEnablePeerAccess of device " + std::to_string(ordinal) + " to device " +
                    std::to_string(peer));
  return true;
}

}  // namespace

int memory_device(DevicePointer address) {
  const Driver& d = driver();
  if (d.pointer_get_attribute == nullptr) return kHostMemory;
  ContextScope scope(any_active_device());
  unsigned type = 0;
  // Memory that the driver has never heard of is the host's, and an error to it.
  const Result result = d.pointer_get_attribute(&type, kAttributeMemoryType, address);
  if (result != kSuccess || type != kMemoryTypeDevice) return kHostMemory;
  int ordinal = kHostMemory;
  check(d.pointer_get_attribute(&ordinal, kAttributeDeviceOrdinal, address),
        "cuPointerGetAttribute of a device ordinal");
  return ordinal;
}

bool try_enable_peer_access(int ordinal, int peer) {
  static std::mutex mutex;
  static auto* const known = new std::map<std::pair<int, int>, bool>();
  std::lock_guard lock(mutex);
  const auto found = known->find({ordinal, peer});
  if (found != known->end()) return found->second;
  const bool direct = enable(ordinal, peer);
  known->emplace(std::pair{ordinal, peer}, direct);
  return direct;
}

void copy_between_devices(DevicePlace from, DevicePlace to, std::size_t size, StreamHandle stream) {
  const Driver& d = driver();
  const Result result = from.ordinal == to.ordinal
                            ? require(d.copy_on_device_async, "cuMemcpyDtoDAsync")(
                                  to.address, from.address, size, stream)
                            : require(d.memcpy_peer_async, "cuMemcpyPeerAsync")(
                                  to.address, primary_context(to.ordinal), from.address,
                                  primary_context(from.ordinal), size, stream);
  check(result, "the copy of " + std::to_string(size) + " bytes from device " +
                    std::to_string(from.ordinal) + " to device " + std::to_string(to.ordinal));
}

}  // namespace sllm::cuda
