#include "pool/dlpack.hpp"

#include <utility>

namespace sllm::pool {
namespace {

constexpr std::uint8_t kUnsigned = 1;

struct ExportedTensor {
  DlManagedTensor managed;
  std::int64_t shape;
  std::int64_t stride;
  std::shared_ptr<void> owner;
};

void delete_exported(DlManagedTensor* managed) {
  delete static_cast<ExportedTensor*>(managed->context);
}

}  // namespace

DlManagedTensor* export_bytes(std::shared_ptr<void> owner, void* data, std::size_t size,
                              DlDevice device) {
  auto* exported = new ExportedTensor{{}, static_cast<std::int64_t>(size), 1, std::move(owner)};
  exported->managed = {{data, device, 1, kUnsigned, 8, 1, &exported->shape, &exported->stride, 0},
                       exported,
                       delete_exported};
  return &exported->managed;
}

}  // namespace sllm::pool
