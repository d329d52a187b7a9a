// Numbers of 16 bits as numbers of 32, and numbers at any address.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace sllm::products {

template <typename Number>
inline Number load_number(const std::uint8_t* address) {
  Number number;
  std::memcpy(&number, address, sizeof(number));
  return number;
}

// Two halves that follow each other, which cost less together than one by one.
struct HalfPair {
  float first;
  float second;
};

inline float half_to_float(std::uint16_t half) {
  constexpr float kSubnormalUnit = 0x1p-24F;
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  const std::uint32_t fraction = half & 0x3FFU;
  if (exponent == 0) {
    const float size = static_cast<float>(fraction) * kSubnormalUnit;
    return std::bit_cast<float>(std::bit_cast<std::uint32_t>(size) | sign);
  }
  const std::uint32_t wide = exponent == 0x1F ? 0xFF : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

inline float bfloat_to_float(std::uint16_t bfloat) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bfloat) << 16);
}

}  // namespace sllm::products
