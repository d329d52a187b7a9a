// Work of a product or a layer, cut into parts that threads claim.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "products/rows.hpp"
#include "products/thread_pool.hpp"

namespace sllm::products {

// Below so many products of numbers, another thread costs more than it does.
constexpr std::size_t kPartProducts = 32 << 10;

// Calls a function with each number below `count`, on up to `threads` threads.
template <typename Function>
void for_each_item(std::size_t count, std::size_t threads, const Function& function) {
  if (count == 0) return;
  const auto call = [](const void* context, std::size_t item) {
    (*static_cast<const Function*>(context))(item);
  };
  ThreadPool::instance().run({call, &function, count}, threads);
}

constexpr std::size_t divide_up(std::size_t number, std::size_t by) {
  return (number + by - 1) / by;
}

// How many of `rows` rows a part should have, of matrices with so many columns.
inline std::size_t rows_of_part(std::size_t rows, std::size_t row_products, std::size_t threads) {
  constexpr std::size_t kTileRows = 4;
  constexpr std::size_t kPartsPerThread = 4;
  const std::size_t worth = divide_up(kPartProducts, row_products);
  const std::size_t fair = divide_up(rows, threads * kPartsPerThread);
  return divide_up(std::max(worth, fair), kTileRows) * kTileRows;
}

struct Product {
  const RowMatrix& matrix;
  Operands operands;
};

// Multiplies by several matrices of as many columns at once. What threads share is all of their
// rows.
void multiply_all(const RowKernel& kernel, std::span<const Product> products, std::size_t threads);

// Attends with every head of several tokens.
void attend_all(const RowKernel& kernel, std::span<const Attention> tokens, std::size_t threads);

}  // namespace sllm::products
