// The part of the stress test that sends raw and coded bytes to several places at once.
#pragma once

#include <memory>
#include <string>

#include "lanes/link_stock.hpp"

// Loads a file of coded and raw pieces to two GPUs, each over both links, and to host memory;
// every third time it is cancelled, every third time a segment is corrupt. Aborts on a wrong byte.
// Some transfers take what links need from the stock, at the same time as others.
void stress_deliveries(const std::string& directory, unsigned seed,
                       const std::shared_ptr<sllm::lanes::LinkStock>& stock);
