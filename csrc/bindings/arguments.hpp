// Numbers from Python that mean memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sllm::bindings {

inline std::size_t checked_size(std::int64_t size) {
  if (size < 0) throw std::invalid_argument("a size is negative: " + std::to_string(size));
  return static_cast<std::size_t>(size);
}

inline std::byte* checked_memory(std::int64_t address, std::int64_t size) {
  if (address < 0 || (address == 0 && checked_size(size) != 0)) {
    throw std::invalid_argument("address " + std::to_string(address) + " is not memory");
  }
  return reinterpret_cast<std::byte*>(address);
}

}  // namespace sllm::bindings
