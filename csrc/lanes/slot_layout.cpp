#include "lanes/slot_layout.hpp"

namespace sllm::lanes {
namespace {

// What a copy may carry in vain: less than what another copy costs.
constexpr std::ptrdiff_t kGapMax = 64 << 10;

}  // namespace

SlotLayout plan_slot(std::span<const CodedSegment> segments, std::uint64_t capacity) {
  SlotLayout layout;
  for (const CodedSegment& segment : segments) {
    std::uint64_t offset = padded(layout.size);
    bool continues = false;
    if (!layout.runs.empty()) {
      const SlotLayout::Run& last = layout.runs.back();
      const std::ptrdiff_t gap = segment.stored - (last.source + last.size);
      continues = gap >= 0 && gap <= kGapMax;
      if (continues) offset = layout.size + static_cast<std::uint64_t>(gap);
    }
    if (offset + segment.stored_size > capacity) break;
    if (!continues) layout.runs.push_back({segment.stored, offset, 0});
    layout.offsets.push_back(offset);
    layout.size = offset + segment.stored_size;
    layout.runs.back().size = layout.size - layout.runs.back().offset;
  }
  return layout;
}

}  // namespace sllm::lanes
