// CRC-32C (Castagnoli, RFC 3720), by the fastest means this processor has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sllm::io {

// Continues `crc` (0 at the start) over `size` bytes.
std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t size);

// The CRC of A followed by B, from the CRCs of both and the size of B.
std::uint32_t crc32c_combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t size_b);

// The table-driven version that every processor runs: the oracle of the fast ones.
std::uint32_t crc32c_portable(std::uint32_t crc, const void* data, std::size_t size);

}  // namespace sllm::io
