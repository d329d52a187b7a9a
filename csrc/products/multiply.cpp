#include <algorithm>
#include <span>
#include <vector>

#include "products/parts.hpp"
#include "products/rows.hpp"

namespace sllm::products {
void multiply_all(const RowKernel& kernel, std::span<const Product> products, std::size_t threads) {
  std::size_t rows = 0;
  for (const Product& product : products) rows += product.matrix.rows;
  const Product& any = products.front();
  if (rows == 0 || any.operands.tokens == 0) return;
  const std::size_t row_products = any.matrix.columns * any.operands.tokens;
  const std::size_t part_rows = rows_of_part(rows, row_products, threads);
  std::size_t parts = 0;
  for (const Product& product : products) parts += divide_up(product.matrix.rows, part_rows);
  for_each_item(parts, threads, [&](std::size_t part) {
    const Product* product = products.data();
    for (std::size_t own = 0;; ++product, part -= own) {
      own = divide_up(product->matrix.rows, part_rows);
      if (part < own) break;
    }
    const std::size_t first = part * part_rows;
    const std::size_t last = std::min(first + part_rows, product->matrix.rows);
    kernel.multiply(product->matrix, {first, last}, product->operands);
  });
}

void multiply(const RowKernel& kernel, const RowMatrix& matrix, const Operands& operands,
              std::size_t threads) {
  const Product product{matrix, operands};
  multiply_all(kernel, {&product, 1}, threads);
}

void attend_all(const RowKernel& kernel, std::span<const Attention> tokens, std::size_t threads) {
  if (tokens.empty()) return;
  std::size_t places = 0;
  for (const Attention& token : tokens) places += token.count;
  const std::size_t heads = tokens.front().heads;
  const std::size_t products = places * heads * tokens.front().width;
  const std::size_t worth = std::max<std::size_t>(products / kPartProducts, 1);
  for_each_item(tokens.size() * heads, std::min(worth, threads),
                [&](std::size_t item) { kernel.attend(tokens[item / heads], item % heads); });
}

void attend(const RowKernel& kernel, const Attention& attention, std::size_t threads) {
  if (attention.count != 0) attend_all(kernel, {&attention, 1}, threads);
}

BlockShape block_shape(Format format) {
  switch (format) {
    case Format::kQ4_0:
      return {32, 18};
    case Format::kQ4_1:
      return {32, 20};
    case Format::kQ5_0:
      return {32, 22};
    case Format::kQ5_1:
      return {32, 24};
    case Format::kQ8_0:
      return {32, 34};
    case Format::kQ4_K:
      return {256, 144};
    case Format::kQ5_K:
      return {256, 176};
    case Format::kQ6_K:
      return {256, 210};
    case Format::kAffineQ4:
      return {64, 32};
    case Format::kFloat16:
    case Format::kBfloat16:
      return {1, 2};
  }
  return {1, 1};
}

const std::vector<RowKernel>& usable_kernels() {
  static const std::vector<RowKernel> kernels = [] {
    std::vector<RowKernel> usable;
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f")) usable.push_back(avx512_kernel());
    if (avx2) usable.push_back(avx2_kernel());
#endif
    usable.push_back(portable_kernel());
    return usable;
  }();
  return kernels;
}

}  // namespace sllm::products
