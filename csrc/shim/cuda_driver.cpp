#include "shim/cuda_driver.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <string>

namespace sllm::cuda {
namespace {

struct Loaded {
  Driver driver{};
  bool usable = false;  // the functions are there, whether or not initialisation succeeded
  Result code = kNotInitialized;
  std::string reason;
};

class Loader {
 public:
  explicit Loader(void* library) : library_(library) {}

  template <typename Function>
  void require(Function& function, const char* name, const char* older_name = nullptr) {
    optional(function, name, older_name);
    if (function == nullptr && missing_.empty()) missing_ = name;
  }

  template <typename Function>
  void optional(Function& function, const char* name, const char* older_name = nullptr) {
    void* symbol = ::dlsym(library_, name);
    if (symbol == nullptr && older_name != nullptr) symbol = ::dlsym(library_, older_name);
    function = reinterpret_cast<Function>(symbol);
  }

  const std::string& missing() const { return missing_; }

 private:
  void* library_;
  std::string missing_;
};

std::string load_functions(Driver& d, void* library) {
  Loader loader(library);
  loader.require(d.init, "cuInit");
  loader.require(d.device_get_count, "cuDeviceGetCount");
  loader.require(d.device_get, "cuDeviceGet");
  loader.require(d.device_get_uuid, "cuDeviceGetUuid_v2", "cuDeviceGetUuid");
  loader.require(d.device_get_name, "cuDeviceGetName");
  loader.require(d.primary_context_retain, "cuDevicePrimaryCtxRetain");
  loader.optional(d.primary_context_get_state, "cuDevicePrimaryCtxGetState");
  loader.require(d.context_push, "cuCtxPushCurrent_v2");
  loader.require(d.context_pop, "cuCtxPopCurrent_v2");
  loader.require(d.context_synchronize, "cuCtxSynchronize");
  loader.require(d.mem_get_info, "cuMemGetInfo_v2");
  loader.require(d.mem_alloc, "cuMemAlloc_v2");
  loader.require(d.mem_free, "cuMemFree_v2");
  loader.require(d.mem_get_address_range, "cuMemGetAddressRange_v2");
  loader.require(d.copy_to_device_async, "cuMemcpyHtoDAsync_v2");
  loader.optional(d.copy_on_device_async, "cuMemcpyDtoDAsync_v2");
  loader.optional(d.memcpy_async, "cuMemcpyAsync");
  loader.optional(d.memcpy_peer_async, "cuMemcpyPeerAsync");
  loader.optional(d.memset_d32_async, "cuMemsetD32Async");
  loader.optional(d.pointer_get_attribute, "cuPointerGetAttribute");
  loader.optional(d.can_access_peer, "cuDeviceCanAccessPeer");
  loader.optional(d.peer_enable, "cuCtxEnablePeerAccess");
  loader.require(d.copy_to_device, "cuMemcpyHtoD_v2");
  loader.require(d.copy_to_host, "cuMemcpyDtoH_v2");
  loader.require(d.stream_create, "cuStreamCreate");
  loader.require(d.stream_destroy, "cuStreamDestroy_v2");
  loader.require(d.stream_synchronize, "cuStreamSynchronize");
  loader.optional(d.stream_wait_event, "cuStreamWaitEvent");
  loader.require(d.event_create, "cuEventCreate");
  loader.require(d.event_record, "cuEventRecord");
  loader.require(d.event_synchronize, "cuEventSynchronize");
  loader.require(d.event_destroy, "cuEventDestroy_v2");
  loader.optional(d.module_load_data, "cuModuleLoadDataEx");
  loader.optional(d.module_get_function, "cuModuleGetFunction");
  loader.optional(d.launch_kernel, "cuLaunchKernel");
  loader.require(d.ipc_get_mem_handle, "cuIpcGetMemHandle");
  loader.require(d.ipc_open_mem_handle, "cuIpcOpenMemHandle_v2", "cuIpcOpenMemHandle");
  loader.require(d.ipc_close_mem_handle, "cuIpcCloseMemHandle");
  loader.require(d.host_register, "cuMemHostRegister_v2");
  loader.require(d.host_unregister, "cuMemHostUnregister");
  loader.require(d.get_error_name, "cuGetErrorName");
  loader.require(d.get_error_string, "cuGetErrorString");
  return loader.missing();
}

std::string describe(const Driver& d, Result code) {
  const char* name = nullptr;
  const char* text = nullptr;
  if (d.get_error_name(code, &name) != kSuccess || name == nullptr) name = "unknown error";
  if (d.get_error_string(code, &text) != kSuccess || text == nullptr) text = "";
  return std::string(name) + " (" + std::to_string(code) + (*text != '\0' ? ", " : "") + text + ")";
}

Loaded load() {
  Loaded loaded;
  const char* configured = std::getenv("SLLM_CUDA_LIBRARY");
  const std::string path =
      configured != nullptr && *configured != '\0' ? configured : "libcuda.so.1";
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = ::dlerror();
    loaded.reason = "no CUDA driver: " + std::string(error != nullptr ? error : path);
    return loaded;
  }
  const std::string missing = load_functions(loaded.driver, library);
  if (!missing.empty()) {
    loaded.reason = "the CUDA driver " + path + " is too old: it has no " + missing;
    return loaded;
  }
  loaded.usable = true;
  loaded.code = loaded.driver.init(0);
  if (loaded.code != kSuccess) {
    loaded.reason = "cuInit failed: " + describe(loaded.driver, loaded.code);
    return loaded;
  }
  int count = 0;
  loaded.code = loaded.driver.device_get_count(&count);
  if (loaded.code == kSuccess && count == 0) loaded.code = kNoDevice;
  if (loaded.code != kSuccess) {
    loaded.reason = "no CUDA device: " + describe(loaded.driver, loaded.code);
  }
  return loaded;
}

const Loaded& loaded() {
  // Never destroyed: memory may be freed by another thread while the interpreter exits.
  static const Loaded* const instance = new Loaded(load());
  return *instance;
}

}  // namespace

const Driver& driver() {
  const Loaded& state = loaded();
  if (!state.reason.empty()) throw DriverError(state.code, state.reason);
  return state.driver;
}

std::string unavailable_reason() {
  return loaded().reason;
}

void check(Result result, const std::string& what) {
  if (result == kSuccess) return;
  throw DriverError(result, what + " failed: " + describe(loaded().driver, result));
}

}  // namespace sllm::cuda
