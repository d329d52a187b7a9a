// The products with AVX2: sixteen numbers are two vectors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "products/half.hpp"
#include "products/rows.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include "products/inlining.hpp"

// Until the end of the file, so that templates are compiled with it as well.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace sllm::products {
namespace {

struct Lanes {
  struct Floats {
    __m256 low, high;
  };
  struct Integers {
    __m256i low, high;
  };
  struct Scaled {
    __m256 scale, offset;
  };
  static constexpr std::size_t kTileRows = 2;
  static constexpr std::size_t kTileTokens = 2;

  static SLLM_INLINE float half(const std::uint8_t* data) {
    return _cvtsh_ss(load_number<std::uint16_t>(data));
  }
  static SLLM_INLINE HalfPair half_pair(const std::uint8_t* data) {
    const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(load_number<int>(data)));
    return {_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both))};
  }
  static SLLM_INLINE Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static SLLM_INLINE Floats broadcast(float number) {
    return {_mm256_set1_ps(number), _mm256_set1_ps(number)};
  }
  static SLLM_INLINE Floats load(const float* numbers) {
    return {_mm256_loadu_ps(numbers), _mm256_loadu_ps(numbers + 8)};
  }
  static SLLM_INLINE void store(float* to, Floats numbers) {
    _mm256_storeu_ps(to, numbers.low);
    _mm256_storeu_ps(to + 8, numbers.high);
  }
  static SLLM_INLINE Floats multiply(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static SLLM_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static SLLM_INLINE float sum(Floats numbers) {
    const __m256 eight = _mm256_add_ps(numbers.low, numbers.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static SLLM_INLINE __m128i load_half(const std::uint8_t* data) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(data));
  }
  static SLLM_INLINE Integers bytes(const std::uint8_t* data) {
    return {_mm256_cvtepu8_epi32(load_half(data)), _mm256_cvtepu8_epi32(load_half(data + 8))};
  }
  static SLLM_INLINE Integers signed_bytes(const std::uint8_t* data) {
    return {_mm256_cvtepi8_epi32(load_half(data)), _mm256_cvtepi8_epi32(load_half(data + 8))};
  }
  static SLLM_INLINE Integers ordered_nibbles(const std::uint8_t* data) {
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    return {_mm256_srlv_epi32(_mm256_set1_epi32(load_number<int>(data)), shifts),
            _mm256_srlv_epi32(_mm256_set1_epi32(load_number<int>(data + 4)), shifts)};
  }
  static SLLM_INLINE Integers ordered_bits(const std::uint8_t* data) {
    const __m256i bits = _mm256_set1_epi32(load_number<std::uint16_t>(data));
    return {_mm256_srlv_epi32(bits, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            _mm256_srlv_epi32(bits, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
  }
  template <int Bits>
  static SLLM_INLINE Integers shift_right(Integers numbers) {
    return {_mm256_srli_epi32(numbers.low, Bits), _mm256_srli_epi32(numbers.high, Bits)};
  }
  static SLLM_INLINE Integers shift_right_by(Integers numbers, std::size_t bits) {
    const __m128i count = _mm_cvtsi32_si128(static_cast<int>(bits));
    return {_mm256_srl_epi32(numbers.low, count), _mm256_srl_epi32(numbers.high, count)};
  }
  static SLLM_INLINE Integers mask(Integers numbers, int bits) {
    const __m256i mask = _mm256_set1_epi32(bits);
    return {_mm256_and_si256(numbers.low, mask), _mm256_and_si256(numbers.high, mask)};
  }
  static SLLM_INLINE Integers join(Integers low, Integers high) {
    return {_mm256_or_si256(low.low, _mm256_slli_epi32(high.low, 4)),
            _mm256_or_si256(low.high, _mm256_slli_epi32(high.high, 4))};
  }
  static SLLM_INLINE Floats to_floats(Integers numbers) {
    return {_mm256_cvtepi32_ps(numbers.low), _mm256_cvtepi32_ps(numbers.high)};
  }

  static SLLM_INLINE Scaled scaled(float scale, float offset) {
    return {_mm256_set1_ps(scale), _mm256_set1_ps(offset)};
  }
  static SLLM_INLINE Scaled scaled_twice_rounded(float scale, float offset) {
    return scaled(scale, offset);
  }
  static SLLM_INLINE Floats pick(Scaled numbers, Integers nibbles) {
    const Floats weights = to_floats(mask(nibbles, 15));
    return {_mm256_fmadd_ps(numbers.scale, weights.low, numbers.offset),
            _mm256_fmadd_ps(numbers.scale, weights.high, numbers.offset)};
  }
  static SLLM_INLINE Floats pick_twice_rounded(Scaled numbers, Integers nibbles) {
    const Floats weights = to_floats(mask(nibbles, 15));
    return {_mm256_add_ps(_mm256_mul_ps(numbers.scale, weights.low), numbers.offset),
            _mm256_add_ps(_mm256_mul_ps(numbers.scale, weights.high), numbers.offset)};
  }

  static SLLM_INLINE __m128i load_words(const std::uint8_t* data) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
  }
  static SLLM_INLINE Floats halves(const std::uint8_t* data) {
    return {_mm256_cvtph_ps(load_words(data)), _mm256_cvtph_ps(load_words(data + 16))};
  }
  static SLLM_INLINE __m256 widen(__m128i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
  static SLLM_INLINE Floats bfloats(const std::uint8_t* data) {
    return {widen(load_words(data)), widen(load_words(data + 16))};
  }
};

#include "products/row_formats.hpp"
#include "products/row_kernels.hpp"

}  // namespace

const RowKernel& avx2_kernel() {
  static const RowKernel kernel{"avx2", multiply_range, decode_one, attend_head, normalise_token};
  return kernel;
}

}  // namespace sllm::products

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
