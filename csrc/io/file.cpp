#include "io/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "io/aligned_memory.hpp"
#include "io/errors.hpp"
#include "io/page_cache.hpp"

namespace sllm::io {
namespace {

constexpr long kTmpfs = 0x01021994;
constexpr long kRamfs = 0x858458f6;
constexpr long kHugetlbfs = 0x958458f6;
constexpr long kOverlayfs = 0x794c7630;

// pread moves at most 0x7ffff000 bytes; stay below it with an aligned size.
constexpr std::uint64_t kReadMax = 1ULL << 30;

// struct statx of kernel 6.1, which the C library's header may not know yet.
struct Statx {
  std::uint32_t mask;
  std::uint32_t unused_before[37];
  std::uint32_t dio_mem_align;
  std::uint32_t dio_offset_align;
  std::uint64_t unused_after[12];
};
static_assert(sizeof(Statx) == 256);
constexpr unsigned kStatxDioAlign = 0x2000;

}  // namespace

bool is_memory_file_system(long magic) {
  return magic == kTmpfs || magic == kRamfs || magic == kHugetlbfs;
}

int query_direct_alignment(int fd) {
  Statx answer{};
  if (::syscall(SYS_statx, fd, "", AT_EMPTY_PATH, kStatxDioAlign, &answer) != 0) return -1;
  if ((answer.mask & kStatxDioAlign) == 0) return -1;
  if (answer.dio_offset_align == 0) return 0;
  return static_cast<int>(std::max(answer.dio_mem_align, answer.dio_offset_align));
}

File::File(std::string path) : path_(checked_path(std::move(path))) {
  // O_NONBLOCK: opening a FIFO by mistake must not hang.
  buffered_ = Descriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!buffered_.valid()) throw SystemError(errno, errno_text(errno), path_);
  struct stat status{};
  if (::fstat(buffered_.get(), &status) != 0) throw_system_error(errno, "fstat", path_);
  if (S_ISDIR(status.st_mode)) throw SystemError(EISDIR, errno_text(EISDIR), path_);
  if (!S_ISREG(status.st_mode)) throw SystemError(EINVAL, "not a regular file", path_);
  size_ = static_cast<std::uint64_t>(status.st_size);
  struct statfs file_system{};
  if (::fstatfs(buffered_.get(), &file_system) == 0) {
    file_system_ = static_cast<long>(file_system.f_type);
  }
  if (!is_memory_file_system(file_system_)) open_direct();
}

void File::open_direct() {
  const int alignment = query_direct_alignment(buffered_.get());
  if (alignment == 0 || alignment > (1 << 16)) return;
  Descriptor direct(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
  if (!direct.valid()) return;  // EINVAL: this file system has no direct I/O
  // The name may have been given to another file between the two opens.
  struct stat first{};
  struct stat second{};
  if (::fstat(buffered_.get(), &first) != 0 || ::fstat(direct.get(), &second) != 0) return;
  if (first.st_dev != second.st_dev || first.st_ino != second.st_ino) return;
  direct_ = std::move(direct);
  direct_alignment_ = alignment < 0 ? kPageSize : static_cast<std::uint32_t>(alignment);
}

std::uint64_t File::resident_bytes(std::uint64_t offset, std::uint64_t size) const {
  offset = std::min(offset, size_);
  size = std::min(size, size_ - offset);
  // An overlay file's own cache is empty; mincore sees the one of the layer below.
  std::int64_t resident = -1;
  if (file_system_ != kOverlayfs) resident = resident_by_cachestat(buffered_.get(), offset, size);
  if (resident < 0) resident = resident_by_mincore(buffered_.get(), offset, size);
  return static_cast<std::uint64_t>(resident);
}

void File::evict() const {
  const int failed = ::posix_fadvise(buffered_.get(), 0, 0, POSIX_FADV_DONTNEED);
  if (failed != 0) throw_system_error(failed, "posix_fadvise", path_);
}

void File::read_exactly(std::uint64_t offset, std::byte* destination, std::uint64_t size) const {
  std::uint64_t done = 0;
  while (done < size) {
    const ssize_t count =
        ::pread(buffered_.get(), destination + done, std::min(size - done, kReadMax),
                static_cast<off_t>(offset + done));
    if (count == 0) throw_too_short(offset, size);
    if (count > 0) {
      done += static_cast<std::uint64_t>(count);
    } else if (errno != EINTR && errno != EAGAIN) {
      throw_system_error(errno,
                         "cannot read " + std::to_string(size - done) + " bytes at offset " +
                             std::to_string(offset + done),
                         path_);
    }
  }
}

bool File::is_mostly_resident(std::uint64_t offset, std::uint64_t size) const {
  return resident_bytes(offset, size) >= size / 4 * 3;
}

const cufile::FileHandle& File::cufile_handle() const {
  std::lock_guard lock(cufile_mutex_);
  if (cufile_handle_ == nullptr) {
    // It registers a descriptor once, and older versions take none but direct ones.
    const Descriptor& best = direct_.valid() ? direct_ : buffered_;
    cufile_handle_ = std::make_unique<cufile::FileHandle>(best.get(), path_);
  }
  return *cufile_handle_;
}

void File::throw_too_short(std::uint64_t offset, std::uint64_t size) const {
  struct stat status{};
  ::fstat(buffered_.get(), &status);
  throw SystemError(EIO,
                    "expected " + std::to_string(size) + " bytes at offset " +
                        std::to_string(offset) + ", file has " + std::to_string(status.st_size),
                    path_);
}

}  // namespace sllm::io
