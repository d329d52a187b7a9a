#include "io/errors.hpp"

#include <system_error>
#include <utility>

namespace sllm {

std::string errno_text(int code) {
  return std::generic_category().message(code);
}

void throw_system_error(int code, const std::string& what, std::string path) {
  throw SystemError(code, what + ": " + errno_text(code), std::move(path));
}

std::string checked_path(std::string path) {
  if (path.find('\0') != std::string::npos) {
    throw std::invalid_argument("a path has a zero byte in it");
  }
  return path;
}

}  // namespace sllm
