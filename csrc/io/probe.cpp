#include "io/probe.hpp"

#include <fcntl.h>
#include <sys/statfs.h>
#include <sys/utsname.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <fstream>

#include "io/aligned_memory.hpp"
#include "io/descriptor.hpp"
#include "io/errors.hpp"
#include "io/file.hpp"
#include "io/page_cache.hpp"
#include "io/uring.hpp"

namespace sllm::io {
namespace {

struct FileSystemName {
  long magic;
  const char* name;
};

constexpr std::array<FileSystemName, 13> kFileSystems{{
    {0xEF53, "ext4"},
    {0x58465342, "xfs"},
    {0x9123683E, "btrfs"},
    {0x01021994, "tmpfs"},
    {0x794c7630, "overlay"},
    {0x6969, "nfs"},
    {0x65735546, "fuse"},
    {0x2FC12FC1, "zfs"},
    {0xF2F52010, "f2fs"},
    {0x858458f6, "ramfs"},
    {0x01021997, "9p"},
    {0x0BD00BD0, "lustre"},
    {0x00C36400, "ceph"},
}};

std::string file_system_name(long magic) {
  for (const FileSystemName& known : kFileSystems) {
    if (known.magic == magic) return known.name;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "0x%lx", static_cast<unsigned long>(magic));
  return text.data();
}

// The word in brackets, as in "always [madvise] never".
std::string huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);
  const auto open = line.find('[');
  const auto close = line.find(']');
  if (open == std::string::npos || close == std::string::npos) return "unknown";
  return line.substr(open + 1, close - open - 1);
}

}  // namespace

Probe probe(const std::string& directory) {
  checked_path(directory);
  Probe answer{};
  struct statfs file_system{};
  if (::statfs(directory.c_str(), &file_system) != 0) {
    throw SystemError(errno, errno_text(errno), directory);
  }
  const auto magic = static_cast<long>(file_system.f_type);
  answer.file_system = file_system_name(magic);
  const Descriptor scratch(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  const Descriptor handle(
      scratch.valid() ? -1 : ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!scratch.valid() && !handle.valid()) throw SystemError(errno, errno_text(errno), directory);
  if (scratch.valid() && !is_memory_file_system(magic)) {
    const int alignment = query_direct_alignment(scratch.get());
    const bool opens = ::fcntl(scratch.get(), F_SETFL, O_DIRECT) == 0;
    answer.direct_alignment = !opens ? 0 : alignment < 0 ? static_cast<int>(kPageSize) : alignment;
  }
  answer.cachestat =
      resident_by_cachestat(scratch.valid() ? scratch.get() : handle.get(), 0, kPageSize) >= 0;
  int error = 0;
  answer.io_uring = Uring::create(1, error) != nullptr;
  if (!answer.io_uring) answer.io_uring_reason = errno_text(error);
  answer.huge_pages = huge_pages();
  struct utsname name{};
  ::uname(&name);
  answer.kernel = name.release;
  return answer;
}

}  // namespace sllm::io
