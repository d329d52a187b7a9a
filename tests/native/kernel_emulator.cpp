// Runs the GPU's kernel on the CPU, for want of a GPU: the very source, with each thread of a
// thread block as a fibre of its own. Fibres change hands where the kernel synchronises and nowhere
// else, in an order that differs from round to round, so that a missing barrier gives wrong bytes.
// What a segment may touch lies between pages that may not be touched.
//
// Arguments: a file of cases (stored size, raw size, stored bytes, one after the other), and a file
// for the answers (one byte, 1 if the segment was found corrupt, then the raw bytes).
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <vector>

#include "codec/device_decoder.hpp"
#include "codec/segment_layout.hpp"

namespace {

constexpr std::size_t kThreadsMax = 512;
constexpr std::size_t kStackBytes = 64 << 10;

struct Index {
  unsigned x;
};
Index threadIdx;
const Index blockIdx{0};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<std::byte[]> stack;
  bool done;
};
std::array<Fibre, kThreadsMax> fibres;
ucontext_t scheduler;
std::size_t progress;  // barriers passed and fibres ended

void yield() {
  const unsigned self = threadIdx.x;
  swapcontext(&fibres[self].context, &scheduler);
}

// Threads exchange a value each; all go on when all have come.
template <std::size_t kSize>
class Barrier {
 public:
  const std::array<unsigned, kSize>& exchange(unsigned value) {
    arriving_[threadIdx.x % kSize] = value;
    const std::size_t generation = generation_;
    if (++count_ == kSize) {
      published_ = arriving_;
      count_ = 0;
      ++generation_;
      ++progress;
    }
    while (generation_ == generation) yield();
    return published_;
  }

 private:
  std::array<unsigned, kSize> arriving_{};
  std::array<unsigned, kSize> published_{};
  std::size_t count_ = 0;
  std::size_t generation_ = 0;
};
std::array<Barrier<32>, kThreadsMax / 32> warps;
Barrier<kThreadsMax> thread_block;

const std::array<unsigned, 32>& exchange_in_warp(unsigned value) {
  return warps[threadIdx.x / 32].exchange(value);
}

void __syncthreads() {
  thread_block.exchange(0);
}
void __syncwarp() {
  exchange_in_warp(0);
}
unsigned __ballot_sync(unsigned, bool vote) {
  const auto& votes = exchange_in_warp(vote ? 1 : 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) ballot |= votes[lane] << lane;
  return ballot;
}
bool __all_sync(unsigned lanes, bool vote) {
  return __ballot_sync(lanes, vote) == lanes;
}
unsigned __shfl_up_sync(unsigned, unsigned value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  return exchange_in_warp(value)[lane >= distance ? lane - distance : lane];
}
unsigned __popc(unsigned bits) {
  return static_cast<unsigned>(__builtin_popcount(bits));
}
unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (unsigned k = 0; k < 4; ++k) {
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * k) & 7)) & 0xFF) << (8 * k);
  }
  return result;
}
template <typename Value>
Value __ldg(const Value* address) {
  return *address;
}
struct uint2 {
  unsigned x, y;
};
uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}

}  // namespace

#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
namespace kernel {
#include "codec/decode_segments.cu"
}  // namespace kernel

namespace codec = sllm::codec;
static_assert(kernel::kThreads == kThreadsMax);
static_assert(kernel::kMagic == codec::kMagic && kernel::kScale == codec::kScale);
static_assert(kernel::kSegmentBytes == codec::kSegmentBytes);
static_assert(kernel::kHeaderBytes == sizeof(codec::SegmentHeader));
static_assert(kernel::kFrequenciesAt == offsetof(codec::SegmentHeader, frequencies));
static_assert(kernel::kBlockEndsAt == offsetof(codec::SegmentHeader, block_ends));
static_assert(kernel::kLowerBound == codec::kLowerBound);
static_assert(kernel::kBlockSymbols == codec::kBlockSymbols);
static_assert(kernel::kGroupSymbols == codec::kGroupSymbols);
static_assert(kernel::kStatesBytes == codec::kStatesBytes);
static_assert(sizeof(kernel::Jobs) == sizeof(codec::DecodeJobs));

namespace {

// Memory whose end, and the page before its start, are next to pages that fault.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t size)
      : size_(size), pages_((size + kPage - 1) / kPage * kPage + 2 * kPage) {
    base_ = static_cast<unsigned char*>(
        ::mmap(nullptr, pages_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    const std::size_t inner = pages_ - 2 * kPage;
    if (inner != 0 && ::mprotect(base_ + kPage, inner, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~GuardedMemory() { ::munmap(base_, pages_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  unsigned char* data() const { return base_ + pages_ - kPage - size_; }
  // Bytes on the first page before the memory must be as they were made.
  void require_untouched() const {
    if (std::any_of(base_ + kPage, data(), [](unsigned char byte) { return byte != 0; })) {
      std::fputs("kernel_emulator: bytes before the segment were written\n", stderr);
      std::abort();
    }
  }

 private:
  static constexpr std::size_t kPage = 4096;
  std::size_t size_;
  std::size_t pages_;
  unsigned char* base_;
};

kernel::Jobs jobs;
unsigned errors;

void run_thread() {
  kernel::sllm_decode_segments(jobs, &errors);
  fibres[threadIdx.x].done = true;
  ++progress;
  yield();
}

void launch(std::mt19937& engine) {
  for (Fibre& fibre : fibres) {
    if (fibre.stack == nullptr) fibre.stack = std::make_unique<std::byte[]>(kStackBytes);
    getcontext(&fibre.context);
    fibre.context.uc_stack = {fibre.stack.get(), 0, kStackBytes};
    fibre.context.uc_link = nullptr;
    fibre.done = false;
    makecontext(&fibre.context, run_thread, 0);
  }
  std::array<unsigned, kThreadsMax> order;
  for (unsigned i = 0; i < kThreadsMax; ++i) order[i] = i;
  std::size_t left = kThreadsMax;
  while (left != 0) {
    std::shuffle(order.begin(), order.end(), engine);
    const std::size_t before = progress;
    left = 0;
    for (const unsigned thread : order) {
      if (fibres[thread].done) continue;
      ++left;
      threadIdx.x = thread;
      swapcontext(&scheduler, &fibres[thread].context);
    }
    if (left != 0 && progress == before) {
      std::fputs("kernel_emulator: the threads wait for each other\n", stderr);
      std::abort();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::ifstream cases(argv[1], std::ios::binary);
  std::ofstream answers(argv[2], std::ios::binary);
  std::mt19937 engine(1);
  std::array<std::uint32_t, 2> sizes;
  while (cases.read(reinterpret_cast<char*>(sizes.data()), sizeof(sizes))) {
    const auto [stored_size, raw_size] = sizes;
    const GuardedMemory stored(stored_size);
    const GuardedMemory raw(raw_size);
    cases.read(reinterpret_cast<char*>(stored.data()), stored_size);
    jobs = {1, {{stored.data(), raw.data(), stored_size, raw_size}}};
    errors = 0;
    launch(engine);
    raw.require_untouched();
    answers.put(static_cast<char>(errors));
    answers.write(reinterpret_cast<const char*>(raw.data()), raw_size);
  }
  return 0;
}
