// The products in plain C++, for every processor.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "products/half.hpp"
#include "products/inlining.hpp"
#include "products/rows.hpp"

namespace sllm::products {
namespace {

struct Lanes {
  using Floats = std::array<float, 16>;
  using Integers = std::array<int, 16>;
  struct Scaled {
    float scale, offset;
  };
  static constexpr std::size_t kTileRows = 2;
  static constexpr std::size_t kTileTokens = 2;

  template <typename Of, typename Number>
  static SLLM_INLINE std::array<Number, 16> each(Of of) {
    std::array<Number, 16> numbers;
    for (std::size_t i = 0; i < 16; ++i) numbers[i] = of(i);
    return numbers;
  }
  template <typename Of>
  static SLLM_INLINE Floats floats(Of of) {
    return each<Of, float>(of);
  }
  template <typename Of>
  static SLLM_INLINE Integers integers(Of of) {
    return each<Of, int>(of);
  }

  static SLLM_INLINE float half(const std::uint8_t* data) {
    return half_to_float(load_number<std::uint16_t>(data));
  }
  static SLLM_INLINE HalfPair half_pair(const std::uint8_t* data) {
    return {half(data), half(data + 2)};
  }
  static SLLM_INLINE Floats zero() { return Floats{}; }
  static SLLM_INLINE Floats broadcast(float number) {
    return floats([&](std::size_t) { return number; });
  }
  static SLLM_INLINE Floats load(const float* numbers) {
    return floats([&](std::size_t i) { return numbers[i]; });
  }
  static SLLM_INLINE void store(float* to, const Floats& numbers) {
    std::memcpy(to, numbers.data(), sizeof(numbers));
  }
  static SLLM_INLINE Floats multiply(const Floats& a, const Floats& b) {
    return floats([&](std::size_t i) { return a[i] * b[i]; });
  }
  static SLLM_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
    return floats([&](std::size_t i) { return std::fma(a[i], b[i], c[i]); });
  }
  static SLLM_INLINE float sum(Floats numbers) {
    for (std::size_t half = 8; half != 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) numbers[i] += numbers[i + half];
    }
    return numbers[0];
  }

  static SLLM_INLINE Integers bytes(const std::uint8_t* data) {
    return integers([&](std::size_t i) { return int{data[i]}; });
  }
  static SLLM_INLINE Integers signed_bytes(const std::uint8_t* data) {
    return integers([&](std::size_t i) { return int{static_cast<std::int8_t>(data[i])}; });
  }
  static SLLM_INLINE Integers ordered_nibbles(const std::uint8_t* data) {
    return integers([&](std::size_t i) { return data[i / 2] >> (4 * (i % 2)); });
  }
  static SLLM_INLINE Integers ordered_bits(const std::uint8_t* data) {
    return integers([&](std::size_t i) { return data[i / 8] >> (i % 8); });
  }
  template <int Bits>
  static SLLM_INLINE Integers shift_right(const Integers& numbers) {
    return shift_right_by(numbers, Bits);
  }
  static SLLM_INLINE Integers shift_right_by(const Integers& numbers, std::size_t bits) {
    return integers([&](std::size_t i) { return numbers[i] >> bits; });
  }
  static SLLM_INLINE Integers mask(const Integers& numbers, int bits) {
    return integers([&](std::size_t i) { return numbers[i] & bits; });
  }
  static SLLM_INLINE Integers join(const Integers& low, const Integers& high) {
    return integers([&](std::size_t i) { return low[i] | high[i] << 4; });
  }
  static SLLM_INLINE Floats to_floats(const Integers& numbers) {
    return floats([&](std::size_t i) { return static_cast<float>(numbers[i]); });
  }

  static SLLM_INLINE Scaled scaled(float scale, float offset) { return {scale, offset}; }
  static SLLM_INLINE Scaled scaled_twice_rounded(float scale, float offset) {
    return {scale, offset};
  }
  static SLLM_INLINE Floats pick(const Scaled& numbers, const Integers& nibbles) {
    const Floats weights = to_floats(mask(nibbles, 15));
    return multiply_add(broadcast(numbers.scale), weights, broadcast(numbers.offset));
  }
  static SLLM_INLINE Floats pick_twice_rounded(const Scaled& numbers, const Integers& nibbles) {
    const Floats products = multiply(broadcast(numbers.scale), to_floats(mask(nibbles, 15)));
    return floats([&](std::size_t i) { return products[i] + numbers.offset; });
  }

  static SLLM_INLINE Floats halves(const std::uint8_t* data) {
    return floats([&](std::size_t i) { return half(data + 2 * i); });
  }
  static SLLM_INLINE Floats bfloats(const std::uint8_t* data) {
    return floats(
        [&](std::size_t i) { return bfloat_to_float(load_number<std::uint16_t>(data + 2 * i)); });
  }
};

#include "products/row_formats.hpp"
#include "products/row_kernels.hpp"

}  // namespace

const RowKernel& portable_kernel() {
  static const RowKernel kernel{"portable", multiply_range, decode_one, attend_head,
                                normalise_token};
  return kernel;
}

}  // namespace sllm::products
