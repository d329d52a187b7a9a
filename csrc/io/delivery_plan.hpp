// The part of a transfer plan that comes after the reads: what goes where once a step is complete.
#pragma once

#include "io/transfer_plan.hpp"

namespace sllm::io {

// Fills in the copies, segments and tasks of a plan whose steps are there. Throws
// std::invalid_argument for a request that makes no sense.
void plan_deliveries(const TransferRequest& request, TransferPlan& plan);

}  // namespace sllm::io
