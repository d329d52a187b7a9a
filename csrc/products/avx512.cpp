// The products with AVX-512.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "products/half.hpp"
#include "products/rows.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include "products/inlining.hpp"

#if !defined(__clang__)
// GCC 12 takes the undefined lanes inside of its own intrinsics for uninitialised ones of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Until the end of the file, so that templates are compiled with it as well.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx2,fma,f16c")
#endif

namespace sllm::products {
namespace {

struct Lanes {
  using Floats = __m512;
  using Integers = __m512i;
  using Scaled = __m512;  // a number for each nibble
  static constexpr std::size_t kTileRows = 4;
  static constexpr std::size_t kTileTokens = 4;

  static SLLM_INLINE float half(const std::uint8_t* data) {
    return _cvtsh_ss(load_number<std::uint16_t>(data));
  }
  static SLLM_INLINE HalfPair half_pair(const std::uint8_t* data) {
    const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(load_number<int>(data)));
    return {_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both))};
  }
  static SLLM_INLINE Floats zero() { return _mm512_setzero_ps(); }
  static SLLM_INLINE Floats broadcast(float number) { return _mm512_set1_ps(number); }
  static SLLM_INLINE Floats load(const float* numbers) { return _mm512_loadu_ps(numbers); }
  static SLLM_INLINE void store(float* to, Floats numbers) { _mm512_storeu_ps(to, numbers); }
  static SLLM_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static SLLM_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static SLLM_INLINE float sum(Floats numbers) {
    const __m256 low = _mm512_castps512_ps256(numbers);
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(numbers), 1));
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static SLLM_INLINE __m128i load_bytes(const std::uint8_t* data) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
  }
  static SLLM_INLINE Integers bytes(const std::uint8_t* data) {
    return _mm512_cvtepu8_epi32(load_bytes(data));
  }
  static SLLM_INLINE Integers signed_bytes(const std::uint8_t* data) {
    return _mm512_cvtepi8_epi32(load_bytes(data));
  }
  static SLLM_INLINE Integers ordered_nibbles(const std::uint8_t* data) {
    const __m256i first = _mm256_set1_epi32(load_number<int>(data));
    const __m256i second = _mm256_set1_epi32(load_number<int>(data + 4));
    const __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    return _mm512_srlv_epi32(
        words, _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28));
  }
  static SLLM_INLINE Integers ordered_bits(const std::uint8_t* data) {
    return _mm512_srlv_epi32(
        _mm512_set1_epi32(load_number<std::uint16_t>(data)),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  template <int Bits>
  static SLLM_INLINE Integers shift_right(Integers numbers) {
    return _mm512_srli_epi32(numbers, Bits);
  }
  static SLLM_INLINE Integers shift_right_by(Integers numbers, std::size_t bits) {
    return _mm512_srl_epi32(numbers, _mm_cvtsi32_si128(static_cast<int>(bits)));
  }
  static SLLM_INLINE Integers mask(Integers numbers, int bits) {
    return _mm512_and_si512(numbers, _mm512_set1_epi32(bits));
  }
  static SLLM_INLINE Integers join(Integers low, Integers high) {
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 4));
  }
  static SLLM_INLINE Floats to_floats(Integers numbers) { return _mm512_cvtepi32_ps(numbers); }

  static SLLM_INLINE Floats nibble_values() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static SLLM_INLINE Scaled scaled(float scale, float offset) {
    return _mm512_fmadd_ps(broadcast(scale), nibble_values(), broadcast(offset));
  }
  static SLLM_INLINE Scaled scaled_twice_rounded(float scale, float offset) {
    return _mm512_add_ps(_mm512_mul_ps(broadcast(scale), nibble_values()), broadcast(offset));
  }
  static SLLM_INLINE Floats pick(Scaled numbers, Integers nibbles) {
    return _mm512_permutexvar_ps(nibbles, numbers);  // Looks at the low four bits alone.
  }
  static SLLM_INLINE Floats pick_twice_rounded(Scaled numbers, Integers nibbles) {
    return pick(numbers, nibbles);
  }

  static SLLM_INLINE __m256i load_words(const std::uint8_t* data) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
  }
  static SLLM_INLINE Floats halves(const std::uint8_t* data) {
    return _mm512_cvtph_ps(load_words(data));
  }
  static SLLM_INLINE Floats bfloats(const std::uint8_t* data) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(data)), 16));
  }
};

#include "products/row_formats.hpp"
#include "products/row_kernels.hpp"

}  // namespace

const RowKernel& avx512_kernel() {
  static const RowKernel kernel{"avx512", multiply_range, decode_one, attend_head, normalise_token};
  return kernel;
}

}  // namespace sllm::products

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
