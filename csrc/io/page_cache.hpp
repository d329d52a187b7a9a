// How much of a file the kernel holds in memory.
#pragma once

#include <cstdint>

namespace sllm::io {

// Bytes of the range in the page cache by cachestat(2), or -1 where it is not available.
std::int64_t resident_by_cachestat(int fd, std::uint64_t offset, std::uint64_t size);

// The same by mincore(2). Throws SystemError.
std::int64_t resident_by_mincore(int fd, std::uint64_t offset, std::uint64_t size);

}  // namespace sllm::io
