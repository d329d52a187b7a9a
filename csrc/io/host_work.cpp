#include "io/host_work.hpp"

#include <cstring>

#include "codec/codec.hpp"

namespace sllm::io {

void run_task(const HostTask& task) {
  if (task.is_coded) {
    codec::decode_segment({task.source, task.stored_size}, {task.destination, task.raw_size});
  } else {
    std::memcpy(task.destination, task.source, task.raw_size);
  }
}

void HostWork::add(std::span<const HostTask> tasks) {
  if (tasks.empty()) return;
  std::lock_guard lock(mutex_);
  ready_.push_back(tasks);
}

const HostTask* HostWork::try_take() {
  std::lock_guard lock(mutex_);
  if (ready_.empty()) return nullptr;
  std::span<const HostTask>& first = ready_.front();
  const HostTask* task = first.data();
  first = first.subspan(1);
  if (first.empty()) ready_.pop_front();
  --left_;
  return task;
}

bool HostWork::has_ready() const {
  std::lock_guard lock(mutex_);
  return !ready_.empty();
}

bool HostWork::is_over() const {
  std::lock_guard lock(mutex_);
  return left_ == 0;
}

}  // namespace sllm::io
