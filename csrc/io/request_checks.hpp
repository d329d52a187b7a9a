// Checks of the numbers in a transfer request. Each throws std::invalid_argument naming the entry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sllm::io {

// Throws "<what> <index>: <why>".
[[noreturn]] void refuse(const char* what, std::size_t index, const std::string& why);

// The value of a field as an index, if there is such a thing among `count`.
std::size_t checked_index(const char* what, std::size_t index, const char* field,
                          std::int64_t value, std::size_t count);

void check_extent(const char* what, std::size_t index, const char* field, std::int64_t offset,
                  std::int64_t size);

// The buffer's address plus an extent of it.
std::byte* checked_memory(const char* what, std::size_t index, std::byte* buffer,
                          std::int64_t offset, std::int64_t size);

}  // namespace sllm::io
