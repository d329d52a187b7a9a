#include "io/crc32c.hpp"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#endif

namespace sllm::io {
namespace {

static_assert(std::endian::native == std::endian::little, "the tables are little-endian");

constexpr std::uint32_t kPolynomial = 0x82F63B78;  // reflected

using ByteTables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr ByteTables make_byte_tables() {
  ByteTables tables{};
  for (std::uint32_t n = 0; n < 256; ++n) {
    std::uint32_t crc = n;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ kPolynomial : crc >> 1;
    tables[0][n] = crc;
  }
  for (std::uint32_t n = 0; n < 256; ++n) {
    for (std::size_t k = 1; k < 8; ++k) {
      const std::uint32_t previous = tables[k - 1][n];
      tables[k][n] = tables[0][previous & 0xFF] ^ (previous >> 8);
    }
  }
  return tables;
}

constexpr ByteTables kByteTables = make_byte_tables();

// a * b modulo the polynomial, both reflected; a is not zero.
constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t mask = 1U << 31; mask != 0; mask >>= 1) {
    if ((a & mask) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// x^(2^k) modulo the polynomial. 64-bit sizes in bytes need k up to 66.
constexpr std::array<std::uint32_t, 67> make_powers() {
  std::array<std::uint32_t, 67> powers{};
  powers[0] = 1U << 30;
  for (std::size_t k = 1; k < powers.size(); ++k) {
    powers[k] = multiply(powers[k - 1], powers[k - 1]);
  }
  return powers;
}

constexpr std::array<std::uint32_t, 67> kPowers = make_powers();

// x^(8 * size): what `size` zero bytes do to a CRC.
constexpr std::uint32_t shift_operator(std::uint64_t size) {
  std::uint32_t result = 1U << 31;
  for (std::size_t k = 3; size != 0; size >>= 1, ++k) {
    if ((size & 1) != 0) result = multiply(kPowers[k], result);
  }
  return result;
}

std::uint64_t load64(const unsigned char* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

using Function = std::uint32_t (*)(std::uint32_t, const void*, std::size_t);

#if defined(__x86_64__)

using ShiftTables = std::array<std::array<std::uint32_t, 256>, 4>;

constexpr ShiftTables make_shift_tables(std::uint64_t size) {
  const std::uint32_t shift = shift_operator(size);
  ShiftTables tables{};
  for (std::uint32_t n = 0; n < 256; ++n) {
    for (std::uint32_t k = 0; k < 4; ++k) tables[k][n] = multiply(shift, n << (8 * k));
  }
  return tables;
}

constexpr std::size_t kLongLane = 8192;
constexpr std::size_t kShortLane = 256;
const ShiftTables kLongShift = make_shift_tables(kLongLane);
const ShiftTables kShortShift = make_shift_tables(kShortLane);

std::uint64_t shift(const ShiftTables& tables, std::uint64_t crc) {
  return tables[0][crc & 0xFF] ^ tables[1][(crc >> 8) & 0xFF] ^ tables[2][(crc >> 16) & 0xFF] ^
         tables[3][(crc >> 24) & 0xFF];
}

// The instruction takes three cycles but starts every cycle: three lanes keep it busy.
__attribute__((target("sse4.2,crc32"))) std::uint64_t three_lanes(std::uint64_t crc,
                                                                  const unsigned char* bytes,
                                                                  std::size_t lane,
                                                                  const ShiftTables& tables) {
  std::uint64_t second = 0;
  std::uint64_t third = 0;
  for (std::size_t at = 0; at < lane; at += 8) {
    crc = _mm_crc32_u64(crc, load64(bytes + at));
    second = _mm_crc32_u64(second, load64(bytes + lane + at));
    third = _mm_crc32_u64(third, load64(bytes + 2 * lane + at));
  }
  crc = shift(tables, crc) ^ second;
  return shift(tables, crc) ^ third;
}

__attribute__((target("sse4.2,crc32"))) std::uint32_t crc32c_sse(std::uint32_t crc,
                                                                 const void* data,
                                                                 std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  std::uint64_t state = static_cast<std::uint32_t>(~crc);
  for (; size >= 3 * kLongLane; bytes += 3 * kLongLane, size -= 3 * kLongLane) {
    state = three_lanes(state, bytes, kLongLane, kLongShift);
  }
  for (; size >= 3 * kShortLane; bytes += 3 * kShortLane, size -= 3 * kShortLane) {
    state = three_lanes(state, bytes, kShortLane, kShortShift);
  }
  for (; size >= 8; bytes += 8, size -= 8) state = _mm_crc32_u64(state, load64(bytes));
  auto narrow = static_cast<std::uint32_t>(state);
  for (; size != 0; ++bytes, --size) narrow = _mm_crc32_u8(narrow, *bytes);
  return ~narrow;
}

Function choose() {
  return __builtin_cpu_supports("sse4.2") ? crc32c_sse : crc32c_portable;
}

#elif defined(__aarch64__)

__attribute__((target("+crc"))) std::uint32_t crc32c_arm(std::uint32_t crc, const void* data,
                                                         std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; size >= 8; bytes += 8, size -= 8) crc = __crc32cd(crc, load64(bytes));
  for (; size != 0; ++bytes, --size) crc = __crc32cb(crc, *bytes);
  return ~crc;
}

Function choose() {
  constexpr unsigned long kHasCrc = 1UL << 7;  // HWCAP_CRC32
  return (getauxval(AT_HWCAP) & kHasCrc) != 0 ? crc32c_arm : crc32c_portable;
}

#else

Function choose() {
  return crc32c_portable;
}

#endif

}  // namespace

std::uint32_t crc32c_portable(std::uint32_t crc, const void* data, std::size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; size >= 8; bytes += 8, size -= 8) {
    const std::uint64_t word = load64(bytes) ^ crc;
    crc = 0;
    for (std::size_t k = 0; k < 8; ++k) crc ^= kByteTables[7 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; size != 0; ++bytes, --size) crc = kByteTables[0][(crc ^ *bytes) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size) {
  static const Function function = choose();
  return function(crc, data, size);
}

std::uint32_t crc32c_combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t size_b) {
  return multiply(shift_operator(size_b), crc_a) ^ crc_b;
}

}  // namespace sllm::io
