// Numbers of a token's kernels: x is bfloat16 or float16 (X_BF16), norms and biases are of
// NORM_KIND (0 for float32, 1 for bfloat16, 2 for float16). And what makes kernels a chain
// (CHAINED): see chains.py.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARP = 32;

template <int KIND>
struct Vectors {
  typedef u16 Number;
};
template <>
struct Vectors<0> {
  typedef float Number;
};
typedef Vectors<NORM_KIND>::Number Number;  // Of norms and biases.

__device__ __forceinline__ float widen_bf16(u16 bits) {
  return __uint_as_float((u32)bits << 16);
}
__device__ __forceinline__ float widen_half(u16 bits) {
  float found;
  asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"(bits));
  return found;
}
__device__ __forceinline__ float widen_number(float value) {
  return value;
}
__device__ __forceinline__ float widen_number(u16 bits) {
  return NORM_KIND == 1 ? widen_bf16(bits) : widen_half(bits);
}
__device__ __forceinline__ u32 pair_of(float low, float high) {
  u32 found;
  if (X_BF16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
  return found;
}
__device__ __forceinline__ float low_of(u32 pair) {
  return X_BF16 ? __uint_as_float(pair << 16) : widen_half((u16)pair);
}
__device__ __forceinline__ float high_of(u32 pair) {
  return X_BF16 ? __uint_as_float(pair & 0xFFFF0000) : widen_half((u16)(pair >> 16));
}
__device__ __forceinline__ float rounded(float value) {
  return low_of(pair_of(value, 0.0f));
}

__device__ __forceinline__ u32 shared(const void* at) {
  return (u32)__cvta_generic_to_shared(at);
}

__device__ __forceinline__ void let_next_begin() {
  if (CHAINED) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void follow() {  // All that earlier kernels wrote is there.
  if (CHAINED) asm volatile("griddepcontrol.wait;" ::: "memory");
}
