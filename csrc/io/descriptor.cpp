#include "io/descriptor.hpp"

#include <fcntl.h>

#include <cerrno>
#include <string>

#include "io/errors.hpp"

namespace sllm {

Descriptor duplicate(int fd) {
  if (fd < 0) return Descriptor();
  Descriptor copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) throw_system_error(errno, "cannot duplicate descriptor " + std::to_string(fd));
  return copy;
}

}  // namespace sllm
