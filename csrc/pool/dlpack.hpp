// Bytes as a DLPack tensor, which PyTorch, NumPy and others take without a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace sllm::pool {

// The structures of DLPack before version 1, which every consumer reads.
struct DlDevice {
  std::int32_t type;
  std::int32_t id;
};

struct DlTensor {
  void* data;
  DlDevice device;
  std::int32_t dimensions;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

inline constexpr std::int32_t kDlCpu = 1;
inline constexpr std::int32_t kDlCuda = 2;

// A one-dimensional uint8 tensor with a share in its memory. It ends with a call of its deleter,
// which needs nothing of Python: the last view may die in any thread, at any time.
DlManagedTensor* export_bytes(std::shared_ptr<void> owner, void* data, std::size_t size,
                              DlDevice device);

}  // namespace sllm::pool
