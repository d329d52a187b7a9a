#include <algorithm>
#include <vector>

#include "products/rows.hpp"
#include "products/thread_pool.hpp"

namespace sllm::products {
namespace {

constexpr std::size_t kTileRows = 4;
constexpr std::size_t kPartsPerThread = 4;
// Below so many products of numbers, another thread costs more than it does.
constexpr std::size_t kPartProducts = 32 << 10;

struct Job {
  const RowKernel& kernel;
  const RowMatrix& matrix;
  const Operands& operands;
  std::size_t part_rows;
};

void run_part(const void* context, std::size_t item) {
  const Job& job = *static_cast<const Job*>(context);
  const std::size_t first = item * job.part_rows;
  const std::size_t last = std::min(first + job.part_rows, job.matrix.rows);
  job.kernel.multiply(job.matrix, {first, last}, job.operands);
}

struct Heads {
  const RowKernel& kernel;
  const Attention& attention;
};

void run_head(const void* context, std::size_t item) {
  const Heads& heads = *static_cast<const Heads*>(context);
  heads.kernel.attend(heads.attention, item);
}

std::size_t divide_up(std::size_t number, std::size_t by) {
  return (number + by - 1) / by;
}

}  // namespace

void multiply(const RowKernel& kernel, const RowMatrix& matrix, const Operands& operands,
              std::size_t threads) {
  if (matrix.rows == 0 || operands.tokens == 0) return;
  const std::size_t worth = divide_up(kPartProducts, matrix.columns * operands.tokens);
  const std::size_t fair = divide_up(matrix.rows, threads * kPartsPerThread);
  const std::size_t part_rows = divide_up(std::max(worth, fair), kTileRows) * kTileRows;
  const Job job{kernel, matrix, operands, part_rows};
  ThreadPool::instance().run({run_part, &job, divide_up(matrix.rows, part_rows)}, threads);
}

void attend(const RowKernel& kernel, const Attention& attention, std::size_t threads) {
  if (attention.count == 0) return;
  const Heads heads{kernel, attention};
  const std::size_t products = attention.count * attention.heads * attention.width;
  const std::size_t worth = std::max<std::size_t>(products / kPartProducts, 1);
  ThreadPool::instance().run({run_head, &heads, attention.heads}, std::min(worth, threads));
}

BlockShape block_shape(Format format) {
  switch (format) {
    case Format::kQ4_0:
      return {32, 18};
    case Format::kQ4_1:
      return {32, 20};
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
