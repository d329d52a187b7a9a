// Sorts a transfer's pieces by where their bytes are: on the disk, or in the page cache.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "io/control.hpp"
#include "io/transfer_plan.hpp"

namespace sllm::io {

// Consecutive pieces of one step, read by one thread.
struct Batch {
  std::size_t first_piece;
  std::size_t piece_count;
  Source source;
};

// Batches, which threads claim in ascending order.
class BatchQueue {
 public:
  void add(const Batch& batch) { batches_.push_back(batch); }
  bool empty() const { return batches_.empty(); }
  bool exhausted() const { return next_.load() >= batches_.size(); }
  bool try_claim(Batch& batch) {
    const std::size_t index = next_.fetch_add(1);
    if (index >= batches_.size()) return false;
    batch = batches_[index];
    return true;
  }

 private:
  std::vector<Batch> batches_;
  std::atomic<std::size_t> next_{0};
};

struct BatchQueues {
  BatchQueue cold;  // for the few threads that keep the disk busy
  BatchQueue warm;  // for all others
};

// Asks the page cache, with several threads where there is much to ask. One thread alone gets
// everything in the cold queue, in order: with two queues it could wait for itself.
void sort_batches(const TransferPlan& plan, ReadMode mode, unsigned threads, Control& control,
                  BatchQueues& queues);

// A batch's ranges, those that continue one another joined.
std::vector<ReadRange> joined_ranges(const TransferPlan& plan, const Batch& batch);

}  // namespace sllm::io
