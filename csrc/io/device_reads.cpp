#include "io/device_reads.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <tuple>
#include <utility>

namespace sllm::io {
namespace {

using StepRead = StepReads::value_type;

bool delivers_copies_alone(const TransferPlan::Step& step) {
  return step.has_reads && step.copy_count != 0 && step.group_count == 0 && step.task_count == 0;
}

// Sorts reads by where in the buffer they go. False where two go to one place.
bool try_sort_apart(std::span<StepRead> reads) {
  std::sort(reads.begin(), reads.end(), [](const StepRead& a, const StepRead& b) {
    return std::less<>()(a.second.destination, b.second.destination);
  });
  return std::adjacent_find(reads.begin(), reads.end(), [](const StepRead& a, const StepRead& b) {
           return a.second.destination + a.second.size > b.second.destination;
         }) == reads.end();
}

// Those of the copy's bytes that sorted reads bring.
void add_reads_of(const TransferPlan::Copy& copy, const DeviceArena& arena,
                  std::span<const StepRead> reads, StepReads& found) {
  const std::byte* const end = copy.source + copy.size;
  auto next = std::partition_point(reads.begin(), reads.end(), [&](const StepRead& read) {
    return read.second.destination + read.second.size <= copy.source;
  });
  for (; next != reads.end() && next->second.destination < end; ++next) {
    const ReadRange& read = next->second;
    const std::byte* const first = std::max<const std::byte*>(read.destination, copy.source);
    const std::byte* const last = std::min<const std::byte*>(read.destination + read.size, end);
    const std::uint64_t place = copy.destination + static_cast<std::uint64_t>(first - copy.source);
    found.emplace_back(
        next->first,
        ReadRange{read.file, read.offset + static_cast<std::uint64_t>(first - read.destination),
                  static_cast<std::uint64_t>(last - first), reinterpret_cast<std::byte*>(place),
                  &arena});
  }
}

// Orders a step's reads as the files have them, and joins those that continue one another.
void tidy(StepReads& reads, std::size_t begin) {
  const auto first = reads.begin() + static_cast<std::ptrdiff_t>(begin);
  std::stable_sort(first, reads.end(), [](const StepRead& a, const StepRead& b) {
    return std::tie(a.second.file, a.second.arena, a.second.offset) <
           std::tie(b.second.file, b.second.arena, b.second.offset);
  });
  if (first == reads.end()) return;
  auto last = first;
  for (auto next = first + 1; next != reads.end(); ++next) {
    if (!try_join(last->second, next->second)) *++last = *next;
  }
  reads.erase(last + 1, reads.end());
}

}  // namespace

void redirect_reads(const TransferRequest& request, TransferPlan& plan, StepReads& reads) {
  for (const TransferDevice& device : request.devices) {
    plan.arenas.push_back(
        {static_cast<int>(device.ordinal), static_cast<cuda::DevicePointer>(device.base)});
  }
  StepReads redirected;
  std::vector<TransferPlan::Copy> copies;
  std::size_t next = 0;
  for (std::size_t index = 0; index < plan.steps.size(); ++index) {
    TransferPlan::Step& step = plan.steps[index];
    const std::size_t begin = next;
    while (next < reads.size() && reads[next].first == index) ++next;
    const auto own = std::span(reads).subspan(begin, next - begin);
    const auto leaving = std::span(plan.copies).subspan(step.first_copy, step.copy_count);
    if (!delivers_copies_alone(step) || !try_sort_apart(own)) {
      step.first_copy = copies.size();
      copies.insert(copies.end(), leaving.begin(), leaving.end());
      redirected.insert(redirected.end(), own.begin(), own.end());
      continue;
    }
    const std::size_t before = redirected.size();
    std::uint64_t bytes = 0;
    for (const TransferPlan::Copy& copy : leaving) {
      add_reads_of(copy, plan.arenas[copy.device], own, redirected);
    }
    for (std::size_t i = before; i < redirected.size(); ++i) bytes += redirected[i].second.size;
    tidy(redirected, before);
    plan.unread_bytes += step.bytes_out - bytes;
    step.bytes_out = 0;
    step.copy_count = 0;
  }
  plan.copies = std::move(copies);
  reads = std::move(redirected);
}

}  // namespace sllm::io
