// What this kernel and a directory's file system allow.
#pragma once

#include <string>

namespace sllm::io {

struct Probe {
  bool io_uring;
  std::string io_uring_reason;  // empty when it is available
  int direct_alignment;         // 0 for none
  bool cachestat;
  std::string huge_pages;  // 'always', 'madvise', 'never' or 'unknown'
  std::string kernel;
  std::string file_system;
};

// Writes nothing that has a name. Throws SystemError when `directory` cannot be used.
Probe probe(const std::string& directory);

}  // namespace sllm::io
