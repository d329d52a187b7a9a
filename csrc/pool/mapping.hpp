// A range of this process's address space that unmaps itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace sllm::pool {

inline constexpr std::size_t kHugePageSize = 2 << 20;

class Mapping {
 public:
  Mapping() = default;
  Mapping(std::byte* address, std::size_t size) : address_(address), size_(size) {}
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&&) = delete;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  std::byte* address() const { return address_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* address_ = nullptr;
  std::size_t size_ = 0;
};

// Address space without memory, aligned to a huge page. Throws SystemError.
Mapping reserve_address_space(std::size_t size);

// The size in whole pages. Throws std::invalid_argument for 0 and for what no memory can hold.
std::size_t whole_pages(std::int64_t size);

// Faults every page in for writing, without changing a byte. Throws SystemError where there is
// not enough memory.
void populate(const Mapping& mapping, std::int64_t threads);

// The same of memory that is shared, in huge pages where the kernel has them: a disk's read into
// pages that are scattered is split, which halved its rate, and pinning takes longer page by page.
void populate_shared(const Mapping& mapping, std::int64_t threads);

}  // namespace sllm::pool
