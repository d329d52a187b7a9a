// The products' part of the module.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "products/rows.hpp"

namespace sllm::bindings {

using Memory = std::tuple<std::int64_t, std::int64_t>;  // address and size

// A matrix in memory that it does not keep, and what multiplies by it.
struct StoredRows {
  products::RowMatrix matrix;
  const products::RowKernel* kernel;
};

std::size_t checked_count(std::int64_t count);
std::size_t checked_threads(std::int64_t threads);

// The start of memory that has room for exactly so many bytes; std::invalid_argument otherwise.
std::byte* exact_memory(const Memory& memory, std::size_t expected, const char* what);

// The start of exactly so many floats.
float* exact_floats(const Memory& memory, std::size_t count, const char* what);

void bind_products(nanobind::module_& module);

// A layer's part, after that of the products.
void bind_layer(nanobind::module_& module);

}  // namespace sllm::bindings
