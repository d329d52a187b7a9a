// The ways in which the native core fails. Bad arguments are std::invalid_argument.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace sllm {

// A system call failed, or a file is not what it was taken for. `code` is an errno.
class SystemError : public std::runtime_error {
 public:
  SystemError(int code, const std::string& message, std::string path = {})
      : std::runtime_error(message), code(code), path(std::move(path)) {}

  int code;
  std::string path;
};

// The Control of a call was cancelled.
class CancelledError : public std::runtime_error {
 public:
  CancelledError() : std::runtime_error("the operation was cancelled") {}
};

// The text of an errno, without strerror's shared buffer.
std::string errno_text(int code);

// Throws SystemError "<what>: <text of code>".
[[noreturn]] void throw_system_error(int code, const std::string& what, std::string path = {});

// The path, unless it has a zero byte: the kernel would open what comes before it.
std::string checked_path(std::string path);

}  // namespace sllm
