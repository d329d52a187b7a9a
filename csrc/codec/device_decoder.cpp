#include "codec/device_decoder.hpp"

#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "codec/embedded_ptx.hpp"
#include "io/errors.hpp"
#include "shim/cuda_device.hpp"
#include "shim/cuda_memory.hpp"

namespace sllm::codec {
namespace {

constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kThreads = 512;  // as decode_segments.cu was compiled for

std::string on_device(const char* call, int ordinal) {
  return std::string(call) + " on device " + std::to_string(ordinal);
}

class OwnStream {
 public:
  explicit OwnStream(int ordinal) {
    cuda::check(cuda::driver().stream_create(&handle_, kStreamNonBlocking),
                on_device("cuStreamCreate", ordinal));
  }
  ~OwnStream() { static_cast<void>(cuda::driver().stream_destroy(handle_)); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;

  cuda::StreamHandle handle() const { return handle_; }

 private:
  cuda::StreamHandle handle_ = nullptr;
};

}  // namespace

DeviceDecoder& DeviceDecoder::of(int ordinal) {
  struct Entry {
    std::mutex making;  // held while the driver loads the kernel, which takes tenths of a second
    std::unique_ptr<DeviceDecoder> decoder;
  };
  static std::mutex mutex;
  // Never destroyed, as the contexts that the kernels are loaded into are never released.
  static auto* const entries = new std::map<int, Entry>();
  Entry* entry = nullptr;
  {
    std::lock_guard lock(mutex);
    entry = &(*entries)[ordinal];  // none is ever removed
  }
  std::lock_guard lock(entry->making);
  if (entry->decoder == nullptr) entry->decoder.reset(new DeviceDecoder(ordinal));
  return *entry->decoder;
}

DeviceDecoder::DeviceDecoder(int ordinal) : ordinal_(ordinal) {
  const cuda::Driver& d = cuda::driver();
  if (d.module_load_data == nullptr || d.module_get_function == nullptr ||
      d.launch_kernel == nullptr) {
    throw cuda::DriverError(cuda::kNotSupported, "the CUDA driver cannot load kernels");
  }
  cuda::ContextScope scope(ordinal);
  cuda::ModuleHandle module = nullptr;
  cuda::check(d.module_load_data(&module, kDecodeSegmentsPtx, 0, nullptr, nullptr),
              on_device("cuModuleLoadDataEx", ordinal));
  cuda::check(d.module_get_function(&kernel_, module, kDecodeKernel),
              on_device("cuModuleGetFunction", ordinal));
}

void DeviceDecoder::launch(std::span<const DeviceSegment> segments, cuda::DevicePointer errors,
                           cuda::StreamHandle stream) {
  for (const DeviceSegment& segment : segments) {
    if ((segment.stored | segment.raw) % kDeviceAlignment != 0) {
      throw std::invalid_argument("a segment's device address is no multiple of " +
                                  std::to_string(kDeviceAlignment));
    }
  }
  cuda::ContextScope scope(ordinal_);
  while (!segments.empty()) {
    DecodeJobs jobs{};
    const std::size_t count = std::min(segments.size(), kSegmentsPerLaunch);
    jobs.count = static_cast<std::uint32_t>(count);
    std::copy_n(segments.begin(), count, jobs.segments);
    void* parameters[] = {&jobs, &errors};
    cuda::check(cuda::driver().launch_kernel(kernel_, jobs.count, 1, 1, kThreads, 1, 1, 0, stream,
                                             parameters, nullptr),
                on_device("cuLaunchKernel", ordinal_));
    segments = segments.subspan(count);
  }
}

void decode_on_device(int ordinal, std::span<const DeviceSegment> segments) {
  DeviceDecoder& decoder = DeviceDecoder::of(ordinal);
  std::uint32_t errors = 0;
  const cuda::DeviceBuffer flag(ordinal, sizeof(errors));
  cuda::copy_to_device(ordinal, &errors, flag.address(), sizeof(errors));
  {
    cuda::ContextScope scope(ordinal);
    const OwnStream stream(ordinal);
    decoder.launch(segments, flag.address(), stream.handle());
    cuda::check(cuda::driver().stream_synchronize(stream.handle()),
                on_device("decoding segments", ordinal));
  }
  cuda::copy_to_host(ordinal, flag.address(), &errors, sizeof(errors));
  if (errors != 0) {
    throw SystemError(EBADMSG, "a coded segment on device " + std::to_string(ordinal) +
                                   " is corrupt, of " + std::to_string(segments.size()));
  }
}

}  // namespace sllm::codec
