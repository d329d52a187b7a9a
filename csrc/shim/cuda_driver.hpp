// The CUDA driver, loaded at run time. Nothing here needs CUDA at build time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sllm::cuda {

using Result = int;
using DeviceHandle = int;
using DevicePointer = unsigned long long;
struct ContextObject;
struct StreamObject;
struct EventObject;
struct ModuleObject;
struct FunctionObject;
using ContextHandle = ContextObject*;
using StreamHandle = StreamObject*;
using EventHandle = EventObject*;
using ModuleHandle = ModuleObject*;
using FunctionHandle = FunctionObject*;

struct Uuid {
  unsigned char bytes[16];
};

struct IpcHandle {
  char bytes[64];
};

inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNotInitialized = 3;
inline constexpr Result kNoDevice = 100;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kInvalidContext = 201;
inline constexpr Result kPeerAccessUnsupported = 217;
inline constexpr Result kNotReady = 600;
inline constexpr Result kPeerAccessAlreadyEnabled = 704;
inline constexpr Result kNotSupported = 801;

// A driver call failed, or there is no driver. `code` is the driver's.
class DriverError : public std::runtime_error {
 public:
  DriverError(Result code, const std::string& message) : std::runtime_error(message), code(code) {}

  Result code;
};

// The driver's functions. Optional ones may be null.
struct Driver {
  Result (*init)(unsigned);
  Result (*device_get_count)(int*);
  Result (*device_get)(DeviceHandle*, int);
  Result (*device_get_uuid)(Uuid*, DeviceHandle);
  Result (*device_get_name)(char*, int, DeviceHandle);
  Result (*primary_context_retain)(ContextHandle*, DeviceHandle);
  Result (*primary_context_get_state)(DeviceHandle, unsigned*, int*);
  Result (*context_push)(ContextHandle);
  Result (*context_pop)(ContextHandle*);
  Result (*context_synchronize)();
  Result (*mem_get_info)(std::size_t*, std::size_t*);
  Result (*mem_alloc)(DevicePointer*, std::size_t);
  Result (*mem_free)(DevicePointer);
  Result (*mem_get_address_range)(DevicePointer*, std::size_t*, DevicePointer);
  Result (*copy_to_device_async)(DevicePointer, const void*, std::size_t, StreamHandle);
  Result (*copy_on_device_async)(DevicePointer, DevicePointer, std::size_t, StreamHandle);
  // Between any two addresses, of host or device memory (unified addressing).
  Result (*memcpy_async)(DevicePointer, DevicePointer, std::size_t, StreamHandle);
  Result (*memcpy_peer_async)(DevicePointer, ContextHandle, DevicePointer, ContextHandle,
                              std::size_t, StreamHandle);
  Result (*memset_d32_async)(DevicePointer, unsigned, std::size_t, StreamHandle);
  Result (*pointer_get_attribute)(void*, int, DevicePointer);
  Result (*can_access_peer)(int*, DeviceHandle, DeviceHandle);
  Result (*peer_enable)(ContextHandle, unsigned);
  Result (*copy_to_device)(DevicePointer, const void*, std::size_t);
  Result (*copy_to_host)(void*, DevicePointer, std::size_t);
  Result (*stream_create)(StreamHandle*, unsigned);
  Result (*stream_destroy)(StreamHandle);
  Result (*stream_synchronize)(StreamHandle);
  Result (*stream_wait_event)(StreamHandle, EventHandle, unsigned);
  Result (*event_create)(EventHandle*, unsigned);
  Result (*event_record)(EventHandle, StreamHandle);
  Result (*event_synchronize)(EventHandle);
  Result (*event_destroy)(EventHandle);
  Result (*module_load_data)(ModuleHandle*, const void*, unsigned, int*, void**);
  Result (*module_get_function)(FunctionHandle*, ModuleHandle, const char*);
  // Blocks of a grid in three dimensions, threads of a block likewise, bytes of shared memory.
  Result (*launch_kernel)(FunctionHandle, unsigned, unsigned, unsigned, unsigned, unsigned,
                          unsigned, unsigned, StreamHandle, void**, void**);
  Result (*ipc_get_mem_handle)(IpcHandle*, DevicePointer);
  Result (*ipc_open_mem_handle)(DevicePointer*, IpcHandle, unsigned);
  Result (*ipc_close_mem_handle)(DevicePointer);
  Result (*host_register)(void*, std::size_t, unsigned);
  Result (*host_unregister)(void*);
  Result (*get_error_name)(Result, const char**);
  Result (*get_error_string)(Result, const char**);
};

// Loads and initialises the driver at the first call: SLLM_CUDA_LIBRARY, else libcuda.so.1.
// Throws DriverError with the reason when there is none; the answer is remembered.
const Driver& driver();

// Empty when driver() works.
std::string unavailable_reason();

// Throws DriverError "<what> failed: NAME (text)" unless the result is success.
void check(Result result, const std::string& what);

// The function, unless this driver has none of that name: then throws DriverError.
template <typename Function>
Function require(Function function, const char* name) {
  if (function != nullptr) return function;
  throw DriverError(kNotSupported, std::string("the CUDA driver is too old: it has no ") + name);
}

}  // namespace sllm::cuda
