#include "io/errors.hpp"

#include <system_error>

namespace sllm {

std::string errno_text(int code) {
  return std::generic_category().message(code);
}

void throw_system_error(int code, const std::string& what, std::string path) {
  throw SystemError(code, what + ": " + errno_text(code), std::move(path));
}

}  // namespace sllm
