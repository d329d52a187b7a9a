// cuFile without NVIDIA's library: reads with pread into the fake driver's device memory, strictly
// checked.
//
// Environment: FAKE_CUFILE_FAIL ("function" fails every time, "function:3" the third time; several
// with commas; with CU_FILE_INTERNAL_ERROR, or in cuFileRead with errno FAKE_CUFILE_ERRNO),
// FAKE_CUFILE_SHORT (the most bytes that a read brings), FAKE_CUFILE_CLOSES_STDIN (as some versions
// do when they are opened). SLLM_CUDA_LIBRARY is the fake driver.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidPointer = 5012;
constexpr int kContextMismatch = 5015;
constexpr int kInvalidValue = 5022;
constexpr int kNotRegistered = 5027;
constexpr int kAlreadyRegistered = 5028;
constexpr int kInternalError = 5030;

struct Error {
  int code;
  int cuda_code;
};

struct FileDescription {
  int type;
  union {
    int descriptor;
    void* handle;
  } file;
  const void* operations;
};

struct Handle {
  int registered;
  int descriptor;  // of the same file, without O_DIRECT
};

struct State {
  std::mutex mutex;
  std::map<std::string, int> calls;
  bool open = false;
  std::set<Handle*> handles;
  std::atomic<std::uint64_t> reads{0};
};

State& state() {
  static State* const instance = new State();
  return *instance;
}

std::uint64_t setting(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : fallback;
}

bool injected(const char* function) {
  const char* configured = std::getenv("FAKE_CUFILE_FAIL");
  if (configured == nullptr) return false;
  int call = 0;
  {
    std::lock_guard lock(state().mutex);
    call = ++state().calls[function];
  }
  const std::string list = "," + std::string(configured) + ",";
  const std::string name = std::string(",") + function;
  return list.find(name + ",") != std::string::npos ||
         list.find(name + ":" + std::to_string(call) + ",") != std::string::npos;
}

template <typename Function>
Function driver_function(const char* name) {
  static void* const driver = ::dlopen(std::getenv("SLLM_CUDA_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
  void* found = driver != nullptr ? ::dlsym(driver, name) : nullptr;
  if (found == nullptr) std::abort();
  return reinterpret_cast<Function>(found);
}

// As the library does: the memory must be the current context's, all of it in one allocation.
int check_destination(std::uint64_t base, std::uint64_t size, std::uint64_t offset) {
  static const auto depth = driver_function<int (*)()>("fake_cuda_context_depth");
  static const auto range = driver_function<int (*)(std::uint64_t*, std::size_t*, std::uint64_t)>(
      "cuMemGetAddressRange_v2");
  if (depth() == 0) return kContextMismatch;
  std::uint64_t start = 0;
  std::size_t length = 0;
  if (range(&start, &length, base) != 0) return kInvalidPointer;
  if (base + offset < start || base + offset + size > start + length) return kInvalidPointer;
  return kSuccess;
}

}  // namespace

extern "C" {

Error cuFileDriverOpen() {
  if (setting("FAKE_CUFILE_CLOSES_STDIN", 0) != 0) ::close(0);
  if (injected("cuFileDriverOpen")) return {kInternalError, 0};
  std::lock_guard lock(state().mutex);
  state().open = true;
  return {kSuccess, 0};
}

Error cuFileHandleRegister(void** handle, FileDescription* description) {
  if (injected("cuFileHandleRegister")) return {kInternalError, 0};
  if (description->type != 1 || description->operations != nullptr) return {kInvalidValue, 0};
  const int given = description->file.descriptor;
  const std::string path = "/proc/self/fd/" + std::to_string(given);
  std::lock_guard lock(state().mutex);
  if (!state().open) return {kInvalidValue, 0};
  for (const Handle* known : state().handles) {
    if (known->registered == given) return {kAlreadyRegistered, 0};
  }
  const int own = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (own < 0) return {kInvalidValue, 0};
  auto* made = new Handle{given, own};
  state().handles.insert(made);
  *handle = made;
  return {kSuccess, 0};
}

void cuFileHandleDeregister(void* handle) {
  auto* known = static_cast<Handle*>(handle);
  std::lock_guard lock(state().mutex);
  if (state().handles.erase(known) == 0) std::abort();
  if (::fcntl(known->registered, F_GETFD) < 0) std::abort();  // closed before
  ::close(known->descriptor);
  delete known;
}

ssize_t cuFileRead(void* handle, void* base, std::size_t size, off_t offset, off_t base_offset) {
  if (injected("cuFileRead")) {
    const auto error = static_cast<int>(setting("FAKE_CUFILE_ERRNO", 0));
    if (error == 0) return -kInternalError;
    errno = error;
    return -1;
  }
  int descriptor = -1;
  {
    std::lock_guard lock(state().mutex);
    if (!state().handles.contains(static_cast<Handle*>(handle))) return -kNotRegistered;
    descriptor = static_cast<Handle*>(handle)->descriptor;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(base);
  const int error = check_destination(address, size, static_cast<std::uint64_t>(base_offset));
  if (error != kSuccess) return -error;
  ++state().reads;
  const std::size_t most = std::min<std::size_t>(size, setting("FAKE_CUFILE_SHORT", SIZE_MAX));
  return ::pread(descriptor, static_cast<char*>(base) + base_offset, most, offset);
}

int fake_cufile_handles() {
  std::lock_guard lock(state().mutex);
  return static_cast<int>(state().handles.size());
}

std::uint64_t fake_cufile_reads() {
  return state().reads.load();
}

}  // extern "C"
