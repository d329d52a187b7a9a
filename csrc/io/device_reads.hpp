// Reads that go from files to GPUs without a stop in host memory, in mode 'cufile'.
#pragma once

#include "io/transfer_plan.hpp"

namespace sllm::io {

// Aims the reads of every step that delivers nothing but copies to GPUs at where those copies go,
// once for each place, and takes these copies out of the plan. Other steps stay as they are.
void redirect_reads(const TransferRequest& request, TransferPlan& plan, StepReads& reads);

}  // namespace sllm::io
