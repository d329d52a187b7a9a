#include "shim/cufile.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <utility>

#include "io/descriptor.hpp"
#include "io/errors.hpp"
#include "shim/cuda_device.hpp"

namespace sllm::cufile {
namespace {

// As in cufile.h of cuFile 1.14 (CUDA 12.9) and 1.20 (CUDA 13), which are alike in all of this.
struct Error {  // CUfileError_t
  int code;
  int cuda_code;  // where code is kCudaDriverError
};
struct FileDescription {  // CUfileDescr_t
  int type;
  union {
    int descriptor;
    void* windows_handle;
  } file;
  const void* operations;  // of file systems in user space
};
static_assert(sizeof(Error) == 8);
static_assert(offsetof(FileDescription, file) == 8 && sizeof(FileDescription) == 24);

constexpr int kTypeDescriptor = 1;  // CU_FILE_HANDLE_TYPE_OPAQUE_FD
constexpr int kSuccess = 0;
constexpr int kErrorBase = 5000;
constexpr int kCudaDriverError = 5011;

// CUfileOpError, from 5001 on; the gaps are its own.
constexpr std::array<const char*, 39> kErrorNames{
    "DRIVER_NOT_INITIALIZED",
    "DRIVER_INVALID_PROPS",
    "DRIVER_UNSUPPORTED_LIMIT",
    "DRIVER_VERSION_MISMATCH",
    "DRIVER_VERSION_READ_ERROR",
    "DRIVER_CLOSING",
    "PLATFORM_NOT_SUPPORTED",
    "IO_NOT_SUPPORTED",
    "DEVICE_NOT_SUPPORTED",
    "NVFS_DRIVER_ERROR",
    "CUDA_DRIVER_ERROR",
    "CUDA_POINTER_INVALID",
    "CUDA_MEMORY_TYPE_INVALID",
    "CUDA_POINTER_RANGE_ERROR",
    "CUDA_CONTEXT_MISMATCH",
    "INVALID_MAPPING_SIZE",
    "INVALID_MAPPING_RANGE",
    "INVALID_FILE_TYPE",
    "INVALID_FILE_OPEN_FLAG",
    "DIO_NOT_SET",
    nullptr,
    "INVALID_VALUE",
    "MEMORY_ALREADY_REGISTERED",
    "MEMORY_NOT_REGISTERED",
    "PERMISSION_DENIED",
    "DRIVER_ALREADY_OPEN",
    "HANDLE_NOT_REGISTERED",
    "HANDLE_ALREADY_REGISTERED",
    "DEVICE_NOT_FOUND",
    "INTERNAL_ERROR",
    "GETNEWFD_FAILED",
    nullptr,
    "NVFS_SETUP_ERROR",
    "IO_DISABLED",
    "BATCH_SUBMIT_FAILED",
    "GPU_MEMORY_PINNING_FAILED",
    "BATCH_FULL",
    "ASYNC_NOT_SUPPORTED",
    nullptr,
};

struct Library {
  Error (*driver_open)();
  Error (*handle_register)(void**, FileDescription*);
  void (*handle_deregister)(void*);
  ssize_t (*read)(void*, void*, std::size_t, off_t, off_t);
};

struct Loaded {
  Library library{};
  std::string reason;
};

std::string describe(const Error& error) {
  const auto index = static_cast<std::size_t>(error.code - kErrorBase - 1);
  const char* name = index < kErrorNames.size() ? kErrorNames[index] : nullptr;
  std::string text = (name != nullptr ? "CU_FILE_" + std::string(name) : "unknown cuFile error") +
                     " (" + std::to_string(error.code) + ")";
  if (error.code == kCudaDriverError) text += ", CUDA error " + std::to_string(error.cuda_code);
  return text;
}

// Where the nvidia-fs module is loaded and its devices are missing, as in many containers,
// cuFileDriverOpen closes descriptor 0, which the next file opened then gets: NVIDIA/DALI's pull
// request 5902, fastsafetensors' 102.
class StandardInputGuard {
 public:
  StandardInputGuard() : saved_(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1)) {}
  ~StandardInputGuard() {
    const bool closed = ::fcntl(STDIN_FILENO, F_GETFD) < 0;
    if (closed && saved_.valid()) ::dup2(saved_.get(), STDIN_FILENO);
  }
  StandardInputGuard(const StandardInputGuard&) = delete;
  StandardInputGuard& operator=(const StandardInputGuard&) = delete;

 private:
  Descriptor saved_;
};

bool is_set(const char* variable) {
  return variable != nullptr && *variable != '\0';
}

// Null with the first failure's reason: the others say less.
void* open_library(std::string& reason) {
  const char* configured = std::getenv("SLLM_CUFILE_LIBRARY");
  const bool is_configured = is_set(configured);
  // cuFile finds the driver by itself; cuFile 1.20 was seen to hang where the system has none.
  if (!is_configured && is_set(std::getenv("SLLM_CUDA_LIBRARY"))) {
    reason = "no cuFile: SLLM_CUDA_LIBRARY is set, and SLLM_CUFILE_LIBRARY is not";
    return nullptr;
  }
  for (const char* name : {is_configured ? configured : "libcufile.so.0", "libcufile.so",
                           "/usr/local/cuda/lib64/libcufile.so.0"}) {
    void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return library;
    const char* error = ::dlerror();
    if (reason.empty()) reason = "no cuFile: " + std::string(error != nullptr ? error : name);
    if (is_configured) break;
  }
  return nullptr;
}

template <typename Function>
void find(void* library, Function& function, const char* name, std::string& missing) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr && missing.empty()) missing = name;
}

Loaded load() {
  Loaded loaded;
  loaded.reason = cuda::unavailable_reason();
  if (!loaded.reason.empty()) return loaded;
  void* library = open_library(loaded.reason);
  if (library == nullptr) return loaded;
  loaded.reason.clear();
  std::string missing;
  find(library, loaded.library.driver_open, "cuFileDriverOpen", missing);
  find(library, loaded.library.handle_register, "cuFileHandleRegister", missing);
  find(library, loaded.library.handle_deregister, "cuFileHandleDeregister", missing);
  find(library, loaded.library.read, "cuFileRead", missing);
  if (!missing.empty()) {
    loaded.reason = "the cuFile library has no " + missing;
    return loaded;
  }
  const StandardInputGuard guard;
  const Error error = loaded.library.driver_open();
  if (error.code != kSuccess) loaded.reason = "cuFileDriverOpen failed: " + describe(error);
  return loaded;
}

const Loaded& loaded() {
  // Never closed: at exit CUDA may be gone before it.
  static const Loaded* const instance = new Loaded(load());
  return *instance;
}

const Library& library() {
  const Loaded& state = loaded();
  if (!state.reason.empty()) {
    throw SystemError(EOPNOTSUPP, "cuFile is not available (" + state.reason + ")");
  }
  return state.library;
}

}  // namespace

std::string unavailable_reason() {
  return loaded().reason;
}

FileHandle::FileHandle(int descriptor, std::string path) : path_(std::move(path)) {
  FileDescription description{};
  description.type = kTypeDescriptor;
  description.file.descriptor = descriptor;
  const Error error = library().handle_register(&handle_, &description);
  if (error.code != kSuccess) {
    throw SystemError(EOPNOTSUPP, "cuFile refused the file: " + describe(error), path_);
  }
}

FileHandle::~FileHandle() {
  library().handle_deregister(handle_);
}

std::uint64_t FileHandle::read(std::uint64_t offset, const DeviceRange& destination) const {
  const cuda::ContextScope scope(destination.ordinal);
  const Library& cufile = library();
  ssize_t count = 0;
  do {
    errno = 0;
    count = cufile.read(handle_, reinterpret_cast<void*>(destination.base), destination.size,
                        static_cast<off_t>(offset), static_cast<off_t>(destination.offset));
  } while (count == -1 && errno == EINTR);
  if (count >= 0) return static_cast<std::uint64_t>(count);
  const int code = count == -1 && errno != 0 ? errno : EIO;
  const std::string why =
      count == -1 ? errno_text(code) : describe({static_cast<int>(-count), /*cuda_code=*/0});
  throw SystemError(code,
                    "cuFile cannot read " + std::to_string(destination.size) + " bytes at offset " +
                        std::to_string(offset) + " to device " +
                        std::to_string(destination.ordinal) + ": " + why,
                    path_);
}

}  // namespace sllm::cufile
