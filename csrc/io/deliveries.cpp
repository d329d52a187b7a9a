#include "io/deliveries.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "codec/codec.hpp"
#include "io/request_checks.hpp"
#include "shim/peer_access.hpp"

namespace sllm::io {

Deliveries::Deliveries(const TransferRequest& request, const TransferPlan& plan, Control& control,
                       Events events)
    : request_(request),
      plan_(plan),
      control_(control),
      events_(std::move(events)),
      states_(plan.steps.size()),
      host_work_(plan.tasks.size()) {
  for (std::size_t i = 0; i < states_.size(); ++i) states_[i].bytes_left = plan.steps[i].bytes_out;
  make_links();
}

void Deliveries::make_links() {
  std::vector<lanes::Target> targets;
  for (const TransferDevice& device : request_.devices) {
    targets.push_back({static_cast<int>(device.ordinal),
                       {device.via.begin(), device.via.end()},
                       /*has_work=*/false,
                       /*has_coded=*/false,
                       /*bytes=*/0});
  }
  for (const TransferPlan::Copy& copy : plan_.copies) {
    targets[copy.device].has_work = true;
    targets[copy.device].bytes += copy.size;
  }
  for (const TransferPlan::SegmentGroup& group : plan_.groups) {
    lanes::Target& target = targets[group.device];
    target.has_work = target.has_coded = true;
    const auto first = plan_.segments.begin() + static_cast<std::ptrdiff_t>(group.first_segment);
    std::for_each_n(first, group.segment_count, [&](const lanes::CodedSegment& segment) {
      target.bytes += segment.stored_size;
    });
  }
  if (plan_.copies.empty() && plan_.groups.empty()) return;
  links_ = std::make_unique<lanes::LinkSet>(
      std::move(targets),
      lanes::Events{[this](std::size_t step, std::uint64_t bytes) { delivered(step, bytes); },
                    [this](std::size_t step, std::span<const lanes::CodedSegment> segments) {
                      find_corrupt(step, segments);
                    },
                    [this](std::exception_ptr error) { events_.failed(std::move(error)); }},
      request_.stock.get());
}

void Deliveries::start() {
  if (links_ != nullptr) links_->start();
}

void Deliveries::stop() {
  stopped_.store(true);
  if (links_ != nullptr) links_->stop();
}

void Deliveries::finish() {
  if (links_ != nullptr) links_->finish();
}

void Deliveries::deliver(std::size_t index) {
  const TransferPlan::Step& step = plan_.steps[index];
  if (!has_begun_.exchange(true)) begin_ = std::chrono::steady_clock::now();
  const int from = source_device(index);
  if (from != cuda::kHostMemory && (step.task_count != 0 || step.group_count != 0)) {
    refuse("step", index, "its buffer is device memory, which can only be copied, and to GPUs");
  }
  if (step.task_count != 0) {
    host_work_.add({&plan_.tasks[step.first_task], step.task_count});
    events_.host_work_changed();
  }
  if (step.copy_count != 0) send_copies(index, from);
  for (std::size_t i = 0; i < step.group_count; ++i) {
    const TransferPlan::SegmentGroup& group = plan_.groups[step.first_group + i];
    const lanes::Job job{.step = index,
                         .segments = {&plan_.segments[group.first_segment], group.segment_count}};
    links_->push(group.device, {&job, 1});
  }
}

// What was read is the host's; what was there already may be another arena in device memory.
int Deliveries::source_device(std::size_t step) const {
  if (plan_.steps[step].has_reads || links_ == nullptr) return cuda::kHostMemory;
  return cuda::memory_device(reinterpret_cast<cuda::DevicePointer>(request_.steps[step].buffer));
}

void Deliveries::send_copies(std::size_t index, int from) {
  const TransferPlan::Step& step = plan_.steps[index];
  std::vector<lanes::Job> jobs;
  for (std::size_t i = 0; i < step.copy_count; ++i) {
    const TransferPlan::Copy& copy = plan_.copies[step.first_copy + i];
    jobs.push_back(
        {.step = index,
         .copy = {reinterpret_cast<cuda::DevicePointer>(copy.source), copy.destination, copy.size},
         .source_device = from,
         .joinable = !step.is_awaited});
    const bool last_of_device =
        i + 1 == step.copy_count || plan_.copies[step.first_copy + i + 1].device != copy.device;
    if (!last_of_device) continue;
    links_->push(copy.device, jobs);
    jobs.clear();
  }
}

void Deliveries::do_host_work() {
  while (!stopped_.load() && !control_.cancelled()) {
    const HostTask* task = host_work_.try_take();
    if (task == nullptr) return;
    run_task(*task);
    if (host_work_.is_over()) events_.host_work_changed();
  }
}

void Deliveries::run_task(const HostTask& task) {
  try {
    io::run_task(task);
  } catch (const SystemError& error) {
    throw corrupt_error(task.step, task.source, error.what());
  }
  delivered(task.step, task.raw_size);
}

void Deliveries::delivered(std::size_t step, std::uint64_t bytes) {
  bytes_.fetch_add(bytes);
  control_.add_bytes(bytes);
  if (states_[step].bytes_left.fetch_sub(bytes) == bytes) events_.step_done(step);
}

// A GPU says that there is a corrupt segment, the CPU says which.
void Deliveries::find_corrupt(std::size_t step, std::span<const lanes::CodedSegment> segments) {
  std::vector<std::byte> raw;
  for (const lanes::CodedSegment& segment : segments) {
    raw.resize(segment.raw_size);
    try {
      codec::decode_segment({segment.stored, segment.stored_size}, raw);
    } catch (const SystemError& error) {
      events_.failed(std::make_exception_ptr(corrupt_error(step, segment.stored, error.what())));
      return;
    }
  }
  events_.failed(std::make_exception_ptr(
      SystemError(EIO, "step " + std::to_string(step) +
                           ": a GPU refused coded segments that are whole in host memory")));
}

SystemError Deliveries::corrupt_error(std::size_t step, const std::byte* stored,
                                      const std::string& why) const {
  const std::ptrdiff_t offset = stored - request_.steps[step].buffer;
  std::string text = "step " + std::to_string(step) + ": the coded segment at " +
                     std::to_string(offset) + " is corrupt: " + why;
  for (const TransferRead& read : request_.reads) {
    if (read.step != static_cast<std::int64_t>(step) || offset < read.step_offset ||
        offset >= read.step_offset + read.size) {
      continue;
    }
    const std::int64_t place = read.file_offset + offset - read.step_offset;
    return {EBADMSG, text + " (at " + std::to_string(place) + " of the file)",
            request_.files[static_cast<std::size_t>(read.file)]->path()};
  }
  return {EBADMSG, text};
}

}  // namespace sllm::io
