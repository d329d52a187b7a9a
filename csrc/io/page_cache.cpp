#include "io/page_cache.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "io/aligned_memory.hpp"
#include "io/errors.hpp"

namespace sllm::io {
namespace {

constexpr long kCachestat = 451;  // the same number on every architecture

struct CachestatRange {
  std::uint64_t offset;
  std::uint64_t size;
};

struct Cachestat {
  std::uint64_t cached_pages;
  std::uint64_t dirty_pages;
  std::uint64_t writeback_pages;
  std::uint64_t evicted_pages;
  std::uint64_t recently_evicted_pages;
};

}  // namespace

std::int64_t resident_by_cachestat(int fd, std::uint64_t offset, std::uint64_t size) {
  CachestatRange range{offset, size};
  Cachestat answer{};
  if (size == 0) return 0;  // the kernel would take 0 for "to the end"
  if (::syscall(kCachestat, fd, &range, &answer, 0) != 0) return -1;
  const auto bytes = answer.cached_pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return static_cast<std::int64_t>(std::min(bytes, size));
}

std::int64_t resident_by_mincore(int fd, std::uint64_t offset, std::uint64_t size) {
  if (size == 0) return 0;
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t start = align_down(offset, page);
  const std::uint64_t length = align_up(offset + size, page) - start;
  void* mapping = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(start));
  if (mapping == MAP_FAILED) throw_system_error(errno, "mmap for mincore");
  std::vector<unsigned char> pages(length / page);
  const int failed = ::mincore(mapping, length, pages.data()) != 0 ? errno : 0;
  ::munmap(mapping, length);
  if (failed != 0) throw_system_error(failed, "mincore");
  const auto resident = std::count_if(pages.begin(), pages.end(),
                                      [](unsigned char state) { return (state & 1) != 0; });
  return static_cast<std::int64_t>(std::min(static_cast<std::uint64_t>(resident) * page, size));
}

}  // namespace sllm::io
