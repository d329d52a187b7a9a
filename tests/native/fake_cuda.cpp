// A CUDA driver without a GPU: the functions that sllm_store calls, on host memory, strictly
// checked. Copies run in a thread of their stream, so that a buffer reused too early shows.
//
// Environment: FAKE_CUDA_DEVICES (2), FAKE_CUDA_MEMORY (bytes per device, 1 GiB),
// FAKE_CUDA_COPY_DELAY_US (before each asynchronous copy or kernel, 0), FAKE_CUDA_PEERS (whether
// devices reach one another's memory, 1), FAKE_CUDA_FAIL ("function" fails every time,
// "function:3" the third time; several with commas; code 999).
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "codec/codec.hpp"
#include "codec/device_decoder.hpp"

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 1;
constexpr int kOutOfMemory = 2;
constexpr int kNotInitialized = 3;
constexpr int kInvalidDevice = 101;
constexpr int kInvalidContext = 201;
constexpr int kAlreadyMapped = 208;
constexpr int kInvalidHandle = 400;
constexpr int kNotFound = 500;
constexpr int kNotReady = 600;
constexpr int kPeerAccessUnsupported = 217;
constexpr int kPeerAccessAlreadyEnabled = 704;
constexpr int kAlreadyRegistered = 712;
constexpr int kNotRegistered = 713;
constexpr int kUnknown = 999;

std::uint64_t setting(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : fallback;
}

struct Context {
  int device;
};

struct Allocation {
  std::uintptr_t address;
  std::size_t size;
  int device;
  int fd;  // -1 for a mapping of another process's
  ino_t inode;
};

struct Stream {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  bool busy = false;
  bool closed = false;
  int device;
  std::thread thread;

  explicit Stream(int device) : device(device), thread([this] { run(); }) {}
  ~Stream() {
    {
      std::lock_guard lock(mutex);
      closed = true;
    }
    changed.notify_all();
    thread.join();
  }
  void add(std::function<void()> item) {
    {
      std::lock_guard lock(mutex);
      work.push_back(std::move(item));
    }
    changed.notify_all();
  }
  void wait_idle() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return work.empty() && !busy; });
  }
  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return closed || !work.empty(); });
      if (work.empty()) return;
      auto item = std::move(work.front());
      work.pop_front();
      busy = true;
      lock.unlock();
      item();
      lock.lock();
      busy = false;
      changed.notify_all();
    }
  }
};

// How often it was recorded, and how many of those records its streams have come to.
struct Event {
  std::mutex mutex;
  std::condition_variable changed;
  int device = 0;
  std::uint64_t recorded = 0;
  std::uint64_t reached = 0;

  void wait_for(std::uint64_t count) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return reached >= count; });
  }
};

struct Module {
  int device;
};
struct Function {
  int device;
};

struct IpcHandle {
  char bytes[64];
};

struct HandleContent {
  char magic[8];
  std::int32_t process;
  std::int32_t fd;
  std::uint64_t inode;
  std::uint64_t size;
  std::int32_t device;
};
static_assert(sizeof(HandleContent) <= sizeof(IpcHandle));
constexpr char kMagic[8] = {'f', 'a', 'k', 'e', 'c', 'u', 'd', 'a'};

struct State {
  std::mutex mutex;
  bool initialised = false;
  std::vector<Context> contexts;
  std::vector<int> retained;
  std::map<std::uintptr_t, Allocation> allocations;
  std::map<std::uintptr_t, Allocation> mappings;
  std::set<std::uint64_t> mapped_inodes;
  std::map<std::uintptr_t, std::size_t> registered;
  std::map<Stream*, std::shared_ptr<Stream>> streams;
  std::map<Event*, std::shared_ptr<Event>> events;
  std::set<std::pair<int, int>> peers;  // whose context reaches whose memory
  std::vector<std::unique_ptr<Module>> modules;
  std::vector<std::unique_ptr<Function>> functions;
  std::vector<std::size_t> used;
  std::vector<std::size_t> sent;  // bytes from the host
  std::map<std::string, int> calls;

  State() {
    const int devices = static_cast<int>(setting("FAKE_CUDA_DEVICES", 2));
    for (int device = 0; device < devices; ++device) contexts.push_back({device});
    retained.resize(contexts.size());
    used.resize(contexts.size());
    sent.resize(contexts.size());
  }
};

State& state() {
  static State* const instance = new State();
  return *instance;
}

thread_local std::vector<Context*> context_stack;

// Whether FAKE_CUDA_FAIL names this call.
bool injected(const char* function) {
  const char* configured = std::getenv("FAKE_CUDA_FAIL");
  if (configured == nullptr) return false;
  int call = 0;
  {
    std::lock_guard lock(state().mutex);
    call = ++state().calls[function];
  }
  const std::string list = std::string(configured) + ",";
  std::size_t start = 0;
  for (std::size_t end; (end = list.find(',', start)) != std::string::npos; start = end + 1) {
    const std::string item = list.substr(start, end - start);
    if (item == function || item == std::string(function) + ":" + std::to_string(call)) return true;
  }
  return false;
}

int enter(const char* function, bool needs_context = true) {
  if (injected(function)) return kUnknown;
  {
    std::lock_guard lock(state().mutex);
    if (!state().initialised) return kNotInitialized;
  }
  if (needs_context && context_stack.empty()) return kInvalidContext;
  return kSuccess;
}

bool valid_device(int device) {
  return device >= 0 && static_cast<std::size_t>(device) < state().contexts.size();
}

// The live allocation or mapping that holds the range, or null. The state is locked.
const Allocation* find_range(std::uint64_t address, std::size_t size) {
  for (const auto* live : {&state().allocations, &state().mappings}) {
    auto after = live->upper_bound(address);
    if (after == live->begin()) continue;
    const Allocation& found = std::prev(after)->second;
    if (address - found.address <= found.size && size <= found.size - (address - found.address)) {
      return &found;
    }
  }
  return nullptr;
}

bool is_device_range(std::uint64_t address, std::size_t size) {
  std::lock_guard lock(state().mutex);
  return find_range(address, size) != nullptr;
}

// The device whose memory holds the range, or -1.
int device_of(std::uint64_t address, std::size_t size) {
  std::lock_guard lock(state().mutex);
  const Allocation* found = find_range(address, size);
  return found != nullptr ? found->device : -1;
}

int enqueue(Stream* stream, std::function<void()> item) {
  std::lock_guard lock(state().mutex);
  if (!state().streams.contains(stream)) return kInvalidHandle;
  stream->add([item = std::move(item)] {
    const auto delay = setting("FAKE_CUDA_COPY_DELAY_US", 0);
    if (delay != 0) std::this_thread::sleep_for(std::chrono::microseconds(delay));
    item();
  });
  return kSuccess;
}

int enqueue_copy(Stream* stream, std::uint64_t to, std::uint64_t from, std::size_t size) {
  return enqueue(stream, [=] {
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), size);
  });
}

// What the kernel does, by the CPU's decoder.
void decode_segments(const sllm::codec::DecodeJobs& jobs, std::uint64_t errors) {
  for (std::uint32_t i = 0; i < jobs.count; ++i) {
    const sllm::codec::DeviceSegment& segment = jobs.segments[i];
    try {
      sllm::codec::decode_segment(
          {reinterpret_cast<const std::byte*>(segment.stored), segment.stored_size},
          {reinterpret_cast<std::byte*>(segment.raw), segment.raw_size});
    } catch (const std::exception&) {
      *reinterpret_cast<std::uint32_t*>(errors) = 1;
    }
  }
}

std::shared_ptr<Event> find_event(Event* event) {
  std::lock_guard lock(state().mutex);
  const auto found = state().events.find(event);
  return found != state().events.end() ? found->second : nullptr;
}

void wait_all_streams() {
  std::map<Stream*, std::shared_ptr<Stream>> streams;
  {
    std::lock_guard lock(state().mutex);
    streams = state().streams;
  }
  for (const auto& [handle, stream] : streams) stream->wait_idle();
}

}  // namespace

extern "C" {

int cuInit(unsigned) {
  if (injected("cuInit")) return kUnknown;
  std::lock_guard lock(state().mutex);
  state().initialised = true;
  return kSuccess;
}

int cuDeviceGetCount(int* count) {
  if (const int error = enter("cuDeviceGetCount", false)) return error;
  *count = static_cast<int>(state().contexts.size());
  return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
  if (const int error = enter("cuDeviceGet", false)) return error;
  if (!valid_device(ordinal)) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

int cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  if (const int error = enter("cuDeviceGetUuid_v2", false)) return error;
  if (!valid_device(device)) return kInvalidDevice;
  for (int i = 0; i < 16; ++i) uuid[i] = static_cast<unsigned char>(0xA0 + i);
  uuid[15] = static_cast<unsigned char>(device);
  return kSuccess;
}

int cuDeviceGetName(char* name, int size, int device) {
  if (const int error = enter("cuDeviceGetName", false)) return error;
  if (!valid_device(device)) return kInvalidDevice;
  std::snprintf(name, static_cast<std::size_t>(size), "Fake GPU %d", device);
  return kSuccess;
}

int cuDevicePrimaryCtxRetain(Context** context, int device) {
  if (const int error = enter("cuDevicePrimaryCtxRetain", false)) return error;
  if (!valid_device(device)) return kInvalidDevice;
  std::lock_guard lock(state().mutex);
  ++state().retained[static_cast<std::size_t>(device)];
  *context = &state().contexts[static_cast<std::size_t>(device)];
  return kSuccess;
}

int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  if (const int error = enter("cuDevicePrimaryCtxGetState", false)) return error;
  if (!valid_device(device)) return kInvalidDevice;
  std::lock_guard lock(state().mutex);
  *flags = 0;
  *active = state().retained[static_cast<std::size_t>(device)] > 0 ? 1 : 0;
  return kSuccess;
}

int cuCtxPushCurrent_v2(Context* context) {
  if (const int error = enter("cuCtxPushCurrent_v2", false)) return error;
  if (context == nullptr) return kInvalidContext;
  context_stack.push_back(context);
  return kSuccess;
}

int cuCtxPopCurrent_v2(Context** context) {
  if (const int error = enter("cuCtxPopCurrent_v2")) return error;
  *context = context_stack.back();
  context_stack.pop_back();
  return kSuccess;
}

int cuCtxSynchronize() {
  if (const int error = enter("cuCtxSynchronize")) return error;
  wait_all_streams();
  return kSuccess;
}

int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  if (const int error = enter("cuMemGetInfo_v2")) return error;
  std::lock_guard lock(state().mutex);
  *total = setting("FAKE_CUDA_MEMORY", 1ULL << 30);
  *free = *total - state().used[static_cast<std::size_t>(context_stack.back()->device)];
  return kSuccess;
}

int cuMemAlloc_v2(std::uint64_t* address, std::size_t size) {
  if (const int error = enter("cuMemAlloc_v2")) return error;
  if (size == 0) return kInvalidValue;
  const int device = context_stack.back()->device;
  std::lock_guard lock(state().mutex);
  std::size_t& used = state().used[static_cast<std::size_t>(device)];
  if (size > setting("FAKE_CUDA_MEMORY", 1ULL << 30) - used) return kOutOfMemory;
  const int fd = ::memfd_create("fake-cuda", MFD_CLOEXEC);
  if (fd < 0) return kOutOfMemory;
  struct stat status{};
  if (::ftruncate(fd, static_cast<off_t>(size)) != 0 || ::fstat(fd, &status) != 0) {
    ::close(fd);
    return kOutOfMemory;
  }
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    ::close(fd);
    return kOutOfMemory;
  }
  used += size;
  *address = reinterpret_cast<std::uintptr_t>(memory);
  state().allocations[*address] = {*address, size, device, fd, status.st_ino};
  return kSuccess;
}

int cuMemFree_v2(std::uint64_t address) {
  if (const int error = enter("cuMemFree_v2")) return error;
  wait_all_streams();
  std::lock_guard lock(state().mutex);
  const auto found = state().allocations.find(address);
  if (found == state().allocations.end()) return kInvalidValue;
  const Allocation gone = found->second;
  // As on a device: the address belongs to its context.
  if (gone.device != context_stack.back()->device) return kInvalidContext;
  state().used[static_cast<std::size_t>(gone.device)] -= gone.size;
  state().allocations.erase(found);
  ::munmap(reinterpret_cast<void*>(gone.address), gone.size);
  ::close(gone.fd);
  return kSuccess;
}

int cuMemGetAddressRange_v2(std::uint64_t* base, std::size_t* size, std::uint64_t address) {
  if (const int error = enter("cuMemGetAddressRange_v2")) return error;
  std::lock_guard lock(state().mutex);
  const Allocation* found = find_range(address, 1);
  if (found == nullptr) return kInvalidValue;
  *base = found->address;
  *size = found->size;
  return kSuccess;
}

int cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t size, Stream* stream) {
  if (const int error = enter("cuMemcpyHtoDAsync_v2")) return error;
  const int device = device_of(to, size);
  if (device < 0) return kInvalidValue;
  {
    std::lock_guard lock(state().mutex);
    state().sent[static_cast<std::size_t>(device)] += size;
  }
  return enqueue_copy(stream, to, reinterpret_cast<std::uintptr_t>(from), size);
}

int cuMemcpyDtoDAsync_v2(std::uint64_t to, std::uint64_t from, std::size_t size, Stream* stream) {
  if (const int error = enter("cuMemcpyDtoDAsync_v2")) return error;
  if (!is_device_range(to, size) || !is_device_range(from, size)) return kInvalidValue;
  return enqueue_copy(stream, to, from, size);
}

int cuMemcpyAsync(std::uint64_t to, std::uint64_t from, std::size_t size, Stream* stream) {
  if (const int error = enter("cuMemcpyAsync")) return error;
  for (const std::uint64_t address : {to, from}) {
    if (is_device_range(address, 1) && !is_device_range(address, size)) return kInvalidValue;
  }
  return enqueue_copy(stream, to, from, size);
}

int cuMemcpyPeerAsync(std::uint64_t to, Context* to_context, std::uint64_t from,
                      Context* from_context, std::size_t size, Stream* stream) {
  if (const int error = enter("cuMemcpyPeerAsync")) return error;
  if (device_of(to, size) != to_context->device) return kInvalidValue;
  if (device_of(from, size) != from_context->device) return kInvalidValue;
  return enqueue_copy(stream, to, from, size);
}

int cuMemsetD32Async(std::uint64_t to, unsigned value, std::size_t count, Stream* stream) {
  if (const int error = enter("cuMemsetD32Async")) return error;
  if (to % 4 != 0 || !is_device_range(to, count * 4)) return kInvalidValue;
  return enqueue(stream, [=] {
    auto* words = reinterpret_cast<unsigned*>(to);
    std::fill(words, words + count, value);
  });
}

int cuPointerGetAttribute(void* value, int attribute, std::uint64_t address) {
  if (const int error = enter("cuPointerGetAttribute")) return error;
  const int device = device_of(address, 1);
  if (device < 0) return kInvalidValue;
  constexpr int kMemoryType = 2;
  constexpr int kDeviceOrdinal = 9;
  if (attribute == kMemoryType) {
    *static_cast<unsigned*>(value) = 2;
  } else if (attribute == kDeviceOrdinal) {
    *static_cast<int*>(value) = device;
  } else {
    return kInvalidValue;
  }
  return kSuccess;
}

int cuDeviceCanAccessPeer(int* possible, int device, int peer) {
  if (const int error = enter("cuDeviceCanAccessPeer", false)) return error;
  if (!valid_device(device) || !valid_device(peer)) return kInvalidDevice;
  *possible = device != peer && setting("FAKE_CUDA_PEERS", 1) != 0 ? 1 : 0;
  return kSuccess;
}

int cuCtxEnablePeerAccess(Context* peer, unsigned flags) {
  if (const int error = enter("cuCtxEnablePeerAccess")) return error;
  const int device = context_stack.back()->device;
  if (flags != 0 || peer->device == device) return kInvalidValue;
  if (setting("FAKE_CUDA_PEERS", 1) == 0) return kPeerAccessUnsupported;
  std::lock_guard lock(state().mutex);
  const bool is_new = state().peers.emplace(device, peer->device).second;
  return is_new ? kSuccess : kPeerAccessAlreadyEnabled;
}

int cuMemcpyHtoD_v2(std::uint64_t to, const void* from, std::size_t size) {
  if (const int error = enter("cuMemcpyHtoD_v2")) return error;
  if (!is_device_range(to, size)) return kInvalidValue;
  std::memcpy(reinterpret_cast<void*>(to), from, size);
  return kSuccess;
}

int cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t size) {
  if (const int error = enter("cuMemcpyDtoH_v2")) return error;
  if (!is_device_range(from, size)) return kInvalidValue;
  std::memcpy(to, reinterpret_cast<const void*>(from), size);
  return kSuccess;
}

int cuStreamCreate(Stream** stream, unsigned) {
  if (const int error = enter("cuStreamCreate")) return error;
  auto created = std::make_shared<Stream>(context_stack.back()->device);
  *stream = created.get();
  std::lock_guard lock(state().mutex);
  state().streams.emplace(*stream, std::move(created));
  return kSuccess;
}

int cuStreamDestroy_v2(Stream* stream) {
  if (const int error = enter("cuStreamDestroy_v2")) return error;
  std::shared_ptr<Stream> gone;  // joins its thread outside the lock
  std::lock_guard lock(state().mutex);
  const auto found = state().streams.find(stream);
  if (found == state().streams.end()) return kInvalidHandle;
  gone = std::move(found->second);
  state().streams.erase(found);
  return kSuccess;
}

int cuStreamSynchronize(Stream* stream) {
  if (const int error = enter("cuStreamSynchronize")) return error;
  {
    std::lock_guard lock(state().mutex);
    if (!state().streams.contains(stream)) return kInvalidHandle;
  }
  stream->wait_idle();
  return kSuccess;
}

int cuStreamWaitEvent(Stream* stream, Event* event, unsigned flags) {
  if (const int error = enter("cuStreamWaitEvent")) return error;
  const std::shared_ptr<Event> found = find_event(event);
  if (found == nullptr) return kInvalidHandle;
  if (flags != 0) return kInvalidValue;
  std::uint64_t count = 0;
  {
    std::lock_guard lock(found->mutex);
    count = found->recorded;
  }
  std::lock_guard lock(state().mutex);
  if (!state().streams.contains(stream)) return kInvalidHandle;
  stream->add([found, count] { found->wait_for(count); });
  return kSuccess;
}

int cuEventCreate(Event** event, unsigned) {
  if (const int error = enter("cuEventCreate")) return error;
  auto created = std::make_shared<Event>();
  created->device = context_stack.back()->device;
  *event = created.get();
  std::lock_guard lock(state().mutex);
  state().events.emplace(*event, std::move(created));
  return kSuccess;
}

int cuEventRecord(Event* event, Stream* stream) {
  if (const int error = enter("cuEventRecord")) return error;
  const std::shared_ptr<Event> found = find_event(event);
  if (found == nullptr) return kInvalidHandle;
  std::lock_guard state_lock(state().mutex);
  if (!state().streams.contains(stream) || stream->device != found->device) return kInvalidHandle;
  {
    std::lock_guard lock(found->mutex);
    ++found->recorded;
  }
  stream->add([found] {
    std::lock_guard lock(found->mutex);
    ++found->reached;
    found->changed.notify_all();
  });
  return kSuccess;
}

int cuEventQuery(Event* event) {
  if (const int error = enter("cuEventQuery")) return error;
  const std::shared_ptr<Event> found = find_event(event);
  if (found == nullptr) return kInvalidHandle;
  std::lock_guard lock(found->mutex);
  return found->reached == found->recorded ? kSuccess : kNotReady;
}

int cuEventSynchronize(Event* event) {
  if (const int error = enter("cuEventSynchronize")) return error;
  const std::shared_ptr<Event> found = find_event(event);
  if (found == nullptr) return kInvalidHandle;
  std::uint64_t count = 0;
  {
    std::lock_guard lock(found->mutex);
    count = found->recorded;
  }
  found->wait_for(count);
  return kSuccess;
}

int cuEventDestroy_v2(Event* event) {
  if (const int error = enter("cuEventDestroy_v2")) return error;
  std::lock_guard lock(state().mutex);
  return state().events.erase(event) == 1 ? kSuccess : kInvalidHandle;
}

int cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
  if (const int error = enter("cuModuleLoadDataEx")) return error;
  if (std::strstr(static_cast<const char*>(image), sllm::codec::kDecodeKernel) == nullptr) {
    return kInvalidValue;
  }
  std::lock_guard lock(state().mutex);
  state().modules.push_back(std::make_unique<Module>(Module{context_stack.back()->device}));
  *module = state().modules.back().get();
  return kSuccess;
}

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  if (const int error = enter("cuModuleGetFunction")) return error;
  if (std::strcmp(name, sllm::codec::kDecodeKernel) != 0) return kNotFound;
  std::lock_guard lock(state().mutex);
  state().functions.push_back(std::make_unique<Function>(Function{module->device}));
  *function = state().functions.back().get();
  return kSuccess;
}

int cuLaunchKernel(Function* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                   unsigned, Stream* stream, void** parameters, void**) {
  if (const int error = enter("cuLaunchKernel")) return error;
  if (function->device != context_stack.back()->device) return kInvalidHandle;
  auto jobs = std::make_shared<sllm::codec::DecodeJobs>();
  std::memcpy(static_cast<void*>(jobs.get()), parameters[0], sizeof(*jobs));
  std::uint64_t errors = 0;
  std::memcpy(&errors, parameters[1], sizeof(errors));
  if (jobs->count > sllm::codec::kSegmentsPerLaunch) return kInvalidValue;
  if (device_of(errors, 4) != function->device) return kInvalidValue;
  for (std::uint32_t i = 0; i < jobs->count; ++i) {
    const sllm::codec::DeviceSegment& segment = jobs->segments[i];
    if (device_of(segment.stored, segment.stored_size) != function->device ||
        device_of(segment.raw, segment.raw_size) != function->device) {
      return kInvalidValue;  // a real one would find out later, and end the context
    }
  }
  return enqueue(stream, [jobs, errors] { decode_segments(*jobs, errors); });
}

int cuIpcGetMemHandle(IpcHandle* handle, std::uint64_t address) {
  if (const int error = enter("cuIpcGetMemHandle")) return error;
  std::lock_guard lock(state().mutex);
  const auto found = state().allocations.find(address);
  if (found == state().allocations.end()) return kInvalidValue;
  const Allocation& live = found->second;
  HandleContent content{{}, ::getpid(), live.fd, live.inode, live.size, live.device};
  std::memcpy(content.magic, kMagic, sizeof(kMagic));
  std::memset(handle->bytes, 0, sizeof(handle->bytes));
  std::memcpy(handle->bytes, &content, sizeof(content));
  return kSuccess;
}

int cuIpcOpenMemHandle_v2(std::uint64_t* address, IpcHandle handle, unsigned flags) {
  if (const int error = enter("cuIpcOpenMemHandle_v2")) return error;
  HandleContent content{};
  std::memcpy(&content, handle.bytes, sizeof(content));
  if (flags != 1 || std::memcmp(content.magic, kMagic, sizeof(kMagic)) != 0) return kInvalidValue;
  if (content.process == ::getpid()) return kInvalidContext;
  const std::string path =
      "/proc/" + std::to_string(content.process) + "/fd/" + std::to_string(content.fd);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct stat status{};
  if (fd < 0 || ::fstat(fd, &status) != 0 || status.st_ino != content.inode) {
    if (fd >= 0) ::close(fd);
    return kInvalidHandle;
  }
  std::lock_guard lock(state().mutex);
  void* memory = MAP_FAILED;
  if (!state().mapped_inodes.contains(content.inode)) {
    memory = ::mmap(nullptr, content.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  ::close(fd);
  if (memory == MAP_FAILED) return kAlreadyMapped;
  *address = reinterpret_cast<std::uintptr_t>(memory);
  state().mapped_inodes.insert(content.inode);
  state().mappings[*address] = {*address, content.size, context_stack.back()->device, -1,
                                static_cast<ino_t>(content.inode)};
  return kSuccess;
}

int cuIpcCloseMemHandle(std::uint64_t address) {
  if (const int error = enter("cuIpcCloseMemHandle")) return error;
  wait_all_streams();
  std::lock_guard lock(state().mutex);
  const auto found = state().mappings.find(address);
  if (found == state().mappings.end()) return kInvalidValue;
  state().mapped_inodes.erase(found->second.inode);
  ::munmap(reinterpret_cast<void*>(address), found->second.size);
  state().mappings.erase(found);
  return kSuccess;
}

int cuMemHostRegister_v2(void* memory, std::size_t size, unsigned) {
  if (const int error = enter("cuMemHostRegister_v2")) return error;
  std::lock_guard lock(state().mutex);
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  if (memory == nullptr || size == 0) return kInvalidValue;
  return state().registered.emplace(address, size).second ? kSuccess : kAlreadyRegistered;
}

int cuMemHostUnregister(void* memory) {
  if (const int error = enter("cuMemHostUnregister")) return error;
  std::lock_guard lock(state().mutex);
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  return state().registered.erase(address) == 1 ? kSuccess : kNotRegistered;
}

int cuGetErrorName(int code, const char** name) {
  switch (code) {
    case kInvalidValue:
      *name = "CUDA_ERROR_INVALID_VALUE";
      break;
    case kOutOfMemory:
      *name = "CUDA_ERROR_OUT_OF_MEMORY";
      break;
    case kInvalidDevice:
      *name = "CUDA_ERROR_INVALID_DEVICE";
      break;
    case kInvalidContext:
      *name = "CUDA_ERROR_INVALID_CONTEXT";
      break;
    case kInvalidHandle:
      *name = "CUDA_ERROR_INVALID_HANDLE";
      break;
    case kUnknown:
      *name = "CUDA_ERROR_UNKNOWN";
      break;
    default:
      *name = nullptr;
      return kInvalidValue;
  }
  return kSuccess;
}

int cuGetErrorString(int code, const char** text) {
  *text = code == kOutOfMemory ? "out of memory" : "an error of the fake driver";
  return kSuccess;
}

// What a test may ask beyond the driver's own interface.
int fake_cuda_live_allocations() {
  std::lock_guard lock(state().mutex);
  return static_cast<int>(state().allocations.size());
}
int fake_cuda_live_mappings() {
  std::lock_guard lock(state().mutex);
  return static_cast<int>(state().mappings.size());
}
int fake_cuda_live_streams() {
  std::lock_guard lock(state().mutex);
  return static_cast<int>(state().streams.size());
}
int fake_cuda_live_events() {
  std::lock_guard lock(state().mutex);
  return static_cast<int>(state().events.size());
}
int fake_cuda_registrations() {
  std::lock_guard lock(state().mutex);
  return static_cast<int>(state().registered.size());
}
int fake_cuda_retained(int device) {
  std::lock_guard lock(state().mutex);
  return state().retained.at(static_cast<std::size_t>(device));
}
int fake_cuda_peer_enabled(int device, int peer) {
  std::lock_guard lock(state().mutex);
  return state().peers.contains({device, peer}) ? 1 : 0;
}
int fake_cuda_mib_sent_to(int device) {
  std::lock_guard lock(state().mutex);
  return static_cast<int>(state().sent.at(static_cast<std::size_t>(device)) >> 20);
}
int fake_cuda_context_depth() {
  return static_cast<int>(context_stack.size());
}

}  // extern "C"
