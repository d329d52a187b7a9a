// CRC-32C of file ranges, by several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "io/control.hpp"
#include "io/file.hpp"
#include "io/reader.hpp"

namespace sllm::io {

struct ChecksumRange {
  std::int64_t offset;
  std::int64_t size;
};

std::vector<std::uint32_t> checksum_ranges(const std::shared_ptr<const File>& file,
                                           const std::vector<ChecksumRange>& ranges, ReadMode mode,
                                           std::int64_t threads, Control& control);

}  // namespace sllm::io
