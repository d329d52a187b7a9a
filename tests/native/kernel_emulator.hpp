// Runs the GPU's kernel on the CPU, for want of a GPU: the very source, with each thread of a
// thread block as a fibre of its own. Fibres change hands where the kernel synchronises and nowhere
// else, in an order that differs from round to round, so that a missing barrier gives wrong bytes.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>

#include "codec/device_decoder.hpp"
#include "codec/segment_layout.hpp"

namespace emulator {

constexpr std::size_t kThreadsMax = 512;
constexpr std::size_t kStackBytes = 64 << 10;

struct Index {
  unsigned x;
};
inline Index threadIdx;
inline const Index blockIdx{0};

struct Fibre {
  ucontext_t beginning;
  jmp_buf place;  // Where it yielded: a jump asks the system for nothing, swapcontext does.
  std::unique_ptr<std::byte[]> stack;
  bool begun;
  bool done;
};
inline std::array<Fibre, kThreadsMax> fibres;
inline jmp_buf scheduler;
inline std::size_t progress;  // barriers passed and fibres ended

inline void yield() {
  if (_setjmp(fibres[threadIdx.x].place) == 0) _longjmp(scheduler, 1);
}

// Runs a thread until it yields.
inline void resume(unsigned thread) {
  threadIdx.x = thread;
  if (_setjmp(scheduler) != 0) return;
  Fibre& fibre = fibres[thread];
  if (fibre.begun) _longjmp(fibre.place, 1);
  fibre.begun = true;
  setcontext(&fibre.beginning);
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
inline std::array<Barrier<32>, kThreadsMax / 32> warps;
inline Barrier<kThreadsMax> thread_block;

inline const std::array<unsigned, 32>& exchange_in_warp(unsigned value) {
  return warps[threadIdx.x / 32].exchange(value);
}

inline void __syncthreads() {
  thread_block.exchange(0);
}
inline void __syncwarp() {
  exchange_in_warp(0);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const auto& votes = exchange_in_warp(vote ? 1 : 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) ballot |= votes[lane] << lane;
  return ballot;
}
inline bool __all_sync(unsigned lanes, bool vote) {
  return __ballot_sync(lanes, vote) == lanes;
}
inline unsigned __shfl_up_sync(unsigned, unsigned value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  return exchange_in_warp(value)[lane >= distance ? lane - distance : lane];
}
inline unsigned __popc(unsigned bits) {
  return static_cast<unsigned>(__builtin_popcount(bits));
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
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
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}

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

inline kernel::Jobs jobs;
inline unsigned errors;

inline void run_thread() {
  kernel::sllm_decode_segments(jobs, &errors);
  fibres[threadIdx.x].done = true;
  ++progress;
  yield();
}

inline void launch(std::mt19937& engine) {
  for (Fibre& fibre : fibres) {
    if (fibre.stack == nullptr) fibre.stack = std::make_unique<std::byte[]>(kStackBytes);
    getcontext(&fibre.beginning);
    fibre.beginning.uc_stack = {fibre.stack.get(), 0, kStackBytes};
    fibre.beginning.uc_link = nullptr;
    fibre.begun = fibre.done = false;
    makecontext(&fibre.beginning, run_thread, 0);
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
      resume(thread);
    }
    if (left != 0 && progress == before) {
      std::fputs("kernel_emulator: the threads wait for each other\n", stderr);
      std::abort();
    }
  }
}

// Returns whether the kernel took the segment for a sound one.
inline bool decode(std::span<const std::byte> stored, std::span<std::byte> raw) {
  static std::mt19937 engine(1);
  kernel::Segment& segment = jobs.segments[0];
  jobs.count = 1;
  segment.stored = reinterpret_cast<const unsigned char*>(stored.data());
  segment.raw = reinterpret_cast<unsigned char*>(raw.data());
  segment.stored_size = static_cast<unsigned>(stored.size());
  segment.raw_size = static_cast<unsigned>(raw.size());
  errors = 0;
  launch(engine);
  return errors == 0;
}

}  // namespace emulator
