// NVIDIA's cuFile (GPUDirect Storage), loaded at run time: reads from files into device memory.
#pragma once

#include <cstdint>
#include <string>

#include "shim/cuda_driver.hpp"

namespace sllm::cufile {

// Empty when cuFile can be used. The first call loads the library, SLLM_CUFILE_LIBRARY or else
// libcufile.so.0, and opens it, which may take seconds and makes a context on every device; the
// answer is remembered.
std::string unavailable_reason();

// A piece of one allocation in device memory.
struct DeviceRange {
  int ordinal;
  cuda::DevicePointer base;
  std::uint64_t offset;
  std::uint64_t size;
};

// A file registered with cuFile.
class FileHandle {
 public:
  // The descriptor outlives this. Throws SystemError, EOPNOTSUPP where cuFile refuses the file.
  FileHandle(int descriptor, std::string path);
  ~FileHandle();
  FileHandle(const FileHandle&) = delete;
  FileHandle& operator=(const FileHandle&) = delete;

  // Fills the range from `offset` of the file, or as much of it as one call of cuFile does. Returns
  // how many bytes that were, 0 at the end of the file. Any thread may call it.
  std::uint64_t read(std::uint64_t offset, const DeviceRange& destination) const;

 private:
  std::string path_;
  void* handle_ = nullptr;
};

}  // namespace sllm::cufile
