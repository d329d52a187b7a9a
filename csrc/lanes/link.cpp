#include "lanes/link.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "shim/cuda_device.hpp"
#include "shim/peer_access.hpp"

namespace sllm::lanes {

namespace {

LinkNeeds needs_of(int ordinal, const std::vector<Service>& services) {
  LinkNeeds needs{.ordinal = ordinal, .sites = {}};
  for (const Service& service : services) {
    needs.sites.push_back({service.target, service.decodes ? service.limits.coded_bytes : 0});
    if (service.target == ordinal) continue;
    needs.staging_slot_bytes =
        std::max({needs.staging_slot_bytes, service.limits.raw_bytes, service.limits.coded_bytes});
  }
  return needs;
}

}  // namespace

Link::Link(int ordinal, std::vector<Service> services, const Events& events, LinkStock* stock)
    : ordinal_(ordinal), services_(std::move(services)), events_(events), stock_(stock) {}

Link::~Link() {
  finish();
}

void Link::start() {
  thread_ = std::thread([this] { run(); });
}

void Link::finish() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// What the thread makes it also frees: links open and close side by side.
void Link::run() {
  try {
    const LinkNeeds needs = needs_of(ordinal_, services_);
    resources_ = stock_ != nullptr ? stock_->take(needs) : std::make_unique<LinkResources>(needs);
    {
      std::lock_guard lock(mutex_);
      open_ = true;
    }
    pump();
  } catch (...) {
    events_.failed(std::current_exception());
  }
  watch();
  close();
}

void Link::close() {
  std::unique_lock lock(mutex_);
  const bool is_whole = resources_ != nullptr && !broken_;
  lock.unlock();
  if (stock_ != nullptr && is_whole) {
    stock_->put(std::move(resources_));
  } else {
    resources_.reset();
  }
}

void Link::pump() {
  if (full_.load()) return;  // the thread pumps as soon as a slot is free
  std::lock_guard lock(mutex_);
  pump_locked();
}

void Link::pump_locked() {
  while (open_ && !closed_ && issued_ - done_ < kInFlight) {
    const auto index = static_cast<unsigned>(issued_ % kInFlight);
    Batch& batch = slots_[index].batch;
    std::size_t service = 0;
    const auto has_batch = [&](const Service& from) {
      return from.queue->try_claim(from.number, from.limits, batch);
    };
    while (service < services_.size() && !has_batch(services_[service])) ++service;
    if (service == services_.size()) return;
    try {
      enqueue(index, service);
    } catch (...) {
      open_ = false;  // what was enqueued in part uses the slot
      broken_ = true;
      throw;
    }
    ++issued_;
    full_.store(issued_ - done_ == kInFlight);
    changed_.notify_one();
  }
}

void Link::watch() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return closed_ || issued_ != done_; });
    if (issued_ == done_) return;
    Slot& slot = slots_[done_ % kInFlight];
    lock.unlock();
    std::exception_ptr error;
    bool is_corrupt = false;
    try {
      slot.done->wait();
      const auto index = static_cast<unsigned>(done_ % kInFlight);
      is_corrupt = slot.site != nullptr && slot.site->found_corrupt(index);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    broken_ = broken_ || error != nullptr || is_corrupt;
    const Batch batch = std::move(slot.batch);
    ++done_;
    full_.store(false);
    try {
      if (error == nullptr && !is_corrupt) pump_locked();
    } catch (...) {
      error = std::current_exception();
    }
    lock.unlock();
    if (error != nullptr) {
      events_.failed(error);
    } else {
      report(batch, is_corrupt);
    }
    lock.lock();
  }
}

void Link::report(const Batch& batch, bool is_corrupt) {
  if (is_corrupt) {
    events_.corrupt(batch.parts.front().step, batch.segments);
    return;
  }
  for (const Batch::Part& part : batch.parts) events_.complete(part.step, part.bytes);
}

void Link::enqueue(unsigned index, std::size_t service) {
  const int target = services_[service].target;
  Slot& slot = slots_[index];
  slot.site = nullptr;
  cuda::ContextScope scope(ordinal_);
  if (!slot.batch.segments.empty()) {
    enqueue_coded(index, target, resources_->site(service));
  } else if (target == ordinal_) {
    enqueue_raw(index);
  } else {
    enqueue_through(index, target);
  }
}

void Link::send(const RawCopy& copy, int source_device) {
  if (source_device != cuda::kHostMemory) {
    cuda::copy_between_devices({source_device, copy.source}, {ordinal_, copy.destination},
                               copy.size, resources_->copies().handle());
    return;
  }
  cuda::check(cuda::driver().copy_to_device_async(copy.destination,
                                                  reinterpret_cast<const void*>(copy.source),
                                                  copy.size, resources_->copies().handle()),
              "cuMemcpyHtoDAsync of " + std::to_string(copy.size) + " bytes to device " +
                  std::to_string(ordinal_));
}

void Link::enqueue_raw(unsigned index) {
  Slot& slot = slots_[index];
  const cuda::Event& copied = resources_->slot(index).copied;
  const int from = slot.batch.source_device;
  if (from != cuda::kHostMemory && from != ordinal_) {
    static_cast<void>(cuda::try_enable_peer_access(ordinal_, from));  // without, the driver stages
  }
  for (const RawCopy& copy : slot.batch.copies) send(copy, from);
  copied.record(resources_->copies());
  slot.done = &copied;
}

void Link::enqueue_through(unsigned index, int target) {
  Slot& slot = slots_[index];
  const auto& [copied, moved] = resources_->slot(index);
  const cuda::DevicePointer staging = resources_->staging_slot(index);
  std::uint64_t offset = 0;
  for (const RawCopy& copy : slot.batch.copies) {
    send({copy.source, staging + offset, copy.size}, cuda::kHostMemory);
    offset += padded(copy.size);
  }
  copied.record(resources_->copies());
  copied.hold(resources_->moves());
  offset = 0;
  for (const RawCopy& copy : slot.batch.copies) {
    cuda::copy_between_devices({ordinal_, staging + offset}, {target, copy.destination}, copy.size,
                               resources_->moves().handle());
    offset += padded(copy.size);
  }
  moved->record(resources_->moves());
  slot.done = &*moved;
}

void Link::enqueue_coded(unsigned index, int target, DecodeSite& site) {
  Slot& slot = slots_[index];
  const auto& [copied, moved] = resources_->slot(index);
  const SlotLayout& layout = slot.batch.layout;
  const bool is_own = target == ordinal_;
  const cuda::DevicePointer first = is_own ? site.slot(index) : resources_->staging_slot(index);
  for (const SlotLayout::Run& run : layout.runs) {
    const auto source = reinterpret_cast<cuda::DevicePointer>(run.source);
    send({source, first + run.offset, run.size}, cuda::kHostMemory);
  }
  copied.record(resources_->copies());
  if (!is_own) {
    copied.hold(resources_->moves());
    cuda::copy_between_devices({ordinal_, first}, {target, site.slot(index)}, layout.size,
                               resources_->moves().handle());
    moved->record(resources_->moves());
  }
  site.decode(index, slot.batch.segments, layout, is_own ? copied : *moved);
  slot.done = &site.done(index);
  slot.site = &site;
}

}  // namespace sllm::lanes
