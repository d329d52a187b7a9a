// Runs a transfer: files to memory by several threads, memory to devices as steps complete.
#pragma once

#include <cstdint>

#include "io/control.hpp"
#include "io/transfer_plan.hpp"

namespace sllm::io {

struct TransferReport {
  std::uint64_t bytes_direct = 0;
  std::uint64_t bytes_buffered = 0;
  std::uint64_t bytes_copied = 0;
  IoSetting setting;  // of the reads from the disk, at the end
  double read_s = 0;
  double copy_s = 0;
  double total_s = 0;
};

// Returns when every byte is in its place. Throws the first error after everything in flight has
// ended: no buffer is touched afterwards.
TransferReport run_transfer(const TransferRequest& request, Control& control);

}  // namespace sllm::io
