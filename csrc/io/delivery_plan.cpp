#include "io/delivery_plan.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "codec/codec.hpp"
#include "codec/device_decoder.hpp"
#include "io/request_checks.hpp"

namespace sllm::io {
namespace {

// What one thread copies at a time: enough to amortise a call, little enough to share a step.
constexpr std::uint64_t kHostPieceSize = 2 << 20;
constexpr std::size_t kViaMax = 15;

void check_devices(const TransferRequest& request) {
  for (std::size_t i = 0; i < request.devices.size(); ++i) {
    const TransferDevice& device = request.devices[i];
    if (device.ordinal < kHostOrdinal) {
      refuse("device", i, "its ordinal is " + std::to_string(device.ordinal));
    }
    const std::vector<std::int64_t>& via = device.via;
    if (!via.empty() && device.ordinal == kHostOrdinal) {
      refuse("device", i, "nothing goes to host memory via GPUs");
    }
    if (via.size() > kViaMax) {
      refuse("device", i, "it names more than " + std::to_string(kViaMax) + " GPUs to go via");
    }
    for (auto other = via.begin(); other != via.end(); ++other) {
      if (*other < 0 || *other == device.ordinal ||
          std::find(via.begin(), other, *other) != other) {
        refuse("device", i, "it cannot go via " + std::to_string(*other));
      }
    }
  }
}

// Where bytes go: a device's base and an extent after it.
std::uint64_t checked_destination(const TransferRequest& request, const char* what,
                                  std::size_t index, std::size_t device, std::int64_t offset,
                                  std::int64_t size) {
  check_extent(what, index, "device_offset", offset, size);
  const std::int64_t base = request.devices[device].base;
  check_extent("device", device, "base address", base, offset + size);
  return static_cast<std::uint64_t>(base + offset);
}

void add_copies(const TransferRequest& request, TransferPlan& plan) {
  std::size_t previous = 0;
  for (std::size_t i = 0; i < request.copies.size(); ++i) {
    const TransferCopy& copy = request.copies[i];
    const std::size_t step = checked_index("copy", i, "step", copy.step, request.steps.size());
    const std::size_t device =
        checked_index("copy", i, "device", copy.device, request.devices.size());
    if (step < previous) refuse("copy", i, "copies are not sorted by step");
    previous = step;
    const std::uint64_t destination =
        checked_destination(request, "copy", i, device, copy.device_offset, copy.size);
    if (copy.size == 0) continue;
    const std::byte* source =
        checked_memory("copy", i, request.steps[step].buffer, copy.step_offset, copy.size);
    TransferPlan::Step& planned = plan.steps[step];
    if (planned.copy_count++ == 0) planned.first_copy = plan.copies.size();
    plan.copies.push_back({device, destination, source, static_cast<std::uint64_t>(copy.size)});
  }
}

// Sorts each step's copies by device and joins those that continue one another.
void merge_copies(TransferPlan& plan) {
  std::vector<TransferPlan::Copy> merged;
  merged.reserve(plan.copies.size());
  for (TransferPlan::Step& step : plan.steps) {
    const auto first = plan.copies.begin() + static_cast<std::ptrdiff_t>(step.first_copy);
    const auto last = first + static_cast<std::ptrdiff_t>(step.copy_count);
    std::stable_sort(first, last, [](const auto& a, const auto& b) { return a.device < b.device; });
    step.first_copy = merged.size();
    for (auto copy = first; copy != last; ++copy) {
      const bool is_first = merged.size() == step.first_copy;
      const bool same_device = !is_first && merged.back().device == copy->device;
      if (same_device && merged.back().destination + merged.back().size == copy->destination &&
          merged.back().source + merged.back().size == copy->source) {
        merged.back().size += copy->size;
      } else {
        merged.push_back(*copy);
      }
    }
    step.copy_count = merged.size() - step.first_copy;
  }
  plan.copies = std::move(merged);
}

// The part of its buffer that each step's reads fill, from the first to the last byte.
std::vector<std::pair<std::int64_t, std::int64_t>> filled_extents(const TransferRequest& request) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  std::vector<std::pair<std::int64_t, std::int64_t>> extents(request.steps.size(), {kMax, 0});
  for (std::size_t i = 0; i < request.reads.size(); ++i) {
    const TransferRead& read = request.reads[i];
    const std::size_t step = checked_index("read", i, "step", read.step, request.steps.size());
    check_extent("read", i, "step_offset", read.step_offset, read.size);
    auto& [first, last] = extents[step];
    first = std::min(first, read.step_offset);
    last = std::max(last, read.step_offset + read.size);
  }
  return extents;
}

void check_sizes(std::size_t index, const TransferDecode& decode) {
  constexpr auto kSegmentMax = static_cast<std::int64_t>(codec::kSegmentBytes);
  for (const auto& [field, size] :
       {std::pair{"raw_size", decode.raw_size}, std::pair{"stored_size", decode.stored_size}}) {
    if (size < 1 || size > kSegmentMax) {
      refuse("decode", index,
             std::string(field) + " is " + std::to_string(size) + ", not 1 to " +
                 std::to_string(kSegmentMax));
    }
  }
}

void check_alignment(std::size_t index, const char* what, std::uint64_t address) {
  if (address % codec::kDeviceAlignment == 0) return;
  refuse("decode", index,
         std::string("its ") + what + " is not a multiple of " +
             std::to_string(codec::kDeviceAlignment) + ", as a GPU needs it");
}

struct PlannedSegment {
  std::size_t step;
  std::size_t device;
  lanes::CodedSegment coded;
};

std::vector<PlannedSegment> checked_segments(const TransferRequest& request) {
  std::vector<PlannedSegment> segments;
  if (request.decodes.empty()) return segments;
  segments.reserve(request.decodes.size());
  const auto filled = filled_extents(request);
  std::size_t previous = 0;
  for (std::size_t i = 0; i < request.decodes.size(); ++i) {
    const TransferDecode& decode = request.decodes[i];
    const std::size_t step = checked_index("decode", i, "step", decode.step, request.steps.size());
    const std::size_t device =
        checked_index("decode", i, "device", decode.device, request.devices.size());
    if (step < previous) refuse("decode", i, "decodes are not sorted by step");
    previous = step;
    check_sizes(i, decode);
    const std::uint64_t raw =
        checked_destination(request, "decode", i, device, decode.device_offset, decode.raw_size);
    const std::byte* stored = checked_memory("decode", i, request.steps[step].buffer,
                                             decode.step_offset, decode.stored_size);
    const auto [first, last] = filled[step];
    if (first < last &&
        (decode.step_offset < first || decode.step_offset + decode.stored_size > last)) {
      refuse("decode", i, "its segment is not within what its step reads");
    }
    if (request.devices[device].ordinal != kHostOrdinal) {
      check_alignment(i, "destination", raw);
      check_alignment(i, "place in memory", reinterpret_cast<std::uintptr_t>(stored));
    }
    segments.push_back({step,
                        device,
                        {stored, raw, static_cast<std::uint32_t>(decode.stored_size),
                         static_cast<std::uint32_t>(decode.raw_size)}});
  }
  // Each step's by device, and otherwise as they were given: in the order of the buffer, most
  // likely.
  std::stable_sort(segments.begin(), segments.end(), [](const auto& a, const auto& b) {
    return std::pair(a.step, a.device) < std::pair(b.step, b.device);
  });
  return segments;
}

// Sorts a plan's copies and segments into what links send and what threads do.
class Sorter {
 public:
  Sorter(const TransferRequest& request, TransferPlan& plan)
      : request_(request), plan_(plan), segments_(checked_segments(request)) {}

  void sort() {
    std::size_t next = 0;
    for (std::size_t i = 0; i < plan_.steps.size(); ++i) {
      TransferPlan::Step& step = plan_.steps[i];
      step.first_task = plan_.tasks.size();
      const std::size_t first_copy = copies_.size();
      for (std::size_t k = 0; k < step.copy_count; ++k) add(i, plan_.copies[step.first_copy + k]);
      step.first_copy = first_copy;
      step.copy_count = copies_.size() - first_copy;
      step.first_group = plan_.groups.size();
      for (; next < segments_.size() && segments_[next].step == i; ++next) add(segments_[next]);
      step.group_count = plan_.groups.size() - step.first_group;
      step.task_count = plan_.tasks.size() - step.first_task;
    }
    plan_.copies = std::move(copies_);
  }

 private:
  bool is_host(std::size_t device) const {
    return request_.devices[device].ordinal == kHostOrdinal;
  }

  void add(std::size_t step, const TransferPlan::Copy& copy) {
    plan_.steps[step].bytes_out += copy.size;
    if (!is_host(copy.device)) {
      copies_.push_back(copy);
      return;
    }
    auto* destination = reinterpret_cast<std::byte*>(copy.destination);
    for (std::uint64_t done = 0; done < copy.size; done += kHostPieceSize) {
      const std::uint64_t size = std::min(kHostPieceSize, copy.size - done);
      plan_.tasks.push_back({step, copy.source + done, destination + done, size, size, false});
    }
  }

  void add(const PlannedSegment& segment) {
    TransferPlan::Step& step = plan_.steps[segment.step];
    const lanes::CodedSegment& coded = segment.coded;
    step.bytes_out += coded.raw_size;
    if (is_host(segment.device)) {
      plan_.tasks.push_back({segment.step, coded.stored, reinterpret_cast<std::byte*>(coded.raw),
                             coded.stored_size, coded.raw_size, true});
      return;
    }
    const bool is_first = plan_.groups.size() == step.first_group;
    if (is_first || plan_.groups.back().device != segment.device) {
      plan_.groups.push_back({segment.device, plan_.segments.size(), 0});
    }
    ++plan_.groups.back().segment_count;
    plan_.segments.push_back(coded);
  }

  const TransferRequest& request_;
  TransferPlan& plan_;
  const std::vector<PlannedSegment> segments_;
  std::vector<TransferPlan::Copy> copies_;
};

}  // namespace

void plan_deliveries(const TransferRequest& request, TransferPlan& plan) {
  check_devices(request);
  add_copies(request, plan);
  merge_copies(plan);
  Sorter(request, plan).sort();
}

}  // namespace sllm::io
