#include "io/request_checks.hpp"

#include <limits>
#include <stdexcept>

namespace sllm::io {
namespace {

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

}  // namespace

void refuse(const char* what, std::size_t index, const std::string& why) {
  throw std::invalid_argument(std::string(what) + " " + std::to_string(index) + ": " + why);
}

std::size_t checked_index(const char* what, std::size_t index, const char* field,
                          std::int64_t value, std::size_t count) {
  if (value < 0 || static_cast<std::uint64_t>(value) >= count) {
    refuse(what, index,
           std::string("there is no ") + field + " " + std::to_string(value) + " among " +
               std::to_string(count));
  }
  return static_cast<std::size_t>(value);
}

void check_extent(const char* what, std::size_t index, const char* field, std::int64_t offset,
                  std::int64_t size) {
  if (offset < 0 || size < 0 || offset > kMax - size) {
    refuse(what, index,
           std::string(field) + " " + std::to_string(offset) + " with size " +
               std::to_string(size) + " is out of range");
  }
}

std::byte* checked_memory(const char* what, std::size_t index, std::byte* buffer,
                          std::int64_t offset, std::int64_t size) {
  check_extent(what, index, "step_offset", offset, size);
  const auto address = reinterpret_cast<std::uintptr_t>(buffer);
  if (buffer == nullptr) refuse(what, index, "its step has no buffer");
  if (address > static_cast<std::uintptr_t>(kMax - offset - size)) {
    refuse(what, index, "it ends beyond the address space");
  }
  return buffer + offset;
}

}  // namespace sllm::io
