// Matrices whose rows are stored as few bytes, and what multiplies by them without unpacking them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sllm::products {

// How a row's numbers are stored: GGUF's blocks, MLX's groups of nibbles, or 16-bit floats.
enum class Format {
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kAffineQ4,
  kFloat16,
  kBfloat16
};

// How an affine matrix stores the scale and the bias of each group.
enum class ScaleType { kFloat16, kBfloat16, kFloat32 };

// Where a matrix is. Rows are contiguous; scales and biases are an affine matrix's alone.
struct RowMatrix {
  Format format;
  std::size_t rows;
  std::size_t columns;
  const std::uint8_t* data;
  const std::uint8_t* scales;
  const std::uint8_t* biases;
  ScaleType scale_type;
  std::size_t group;  // weights of one scale
};

// Weights of a block, and bytes of a block in `data`.
struct BlockShape {
  std::size_t weights;
  std::size_t bytes;
};

BlockShape block_shape(Format format);

// Some rows: what a thread takes on.
struct RowRange {
  std::size_t first;
  std::size_t last;
};

// tokens * columns numbers, and where tokens * rows go.
struct Operands {
  const float* x;
  std::size_t tokens;
  float* out;
};

// One token's attention over keys and values that are scattered in a cache, which has kv_heads
// vectors of `width` numbers a place; width is a multiple of 16. `out` is as the query:
// heads * width.
struct Attention {
  const float* query;
  const float* keys;
  const float* values;
  const std::int64_t* places;
  std::size_t count;
  std::size_t heads;
  std::size_t kv_heads;
  std::size_t width;
  float* out;
};

// x / rms(x) * weight over `count` numbers, a multiple of 16.
struct Norm {
  const float* weight;
  std::size_t count;
  float epsilon;
};

// One way to compute. All of them sum in the same order with the same rounding: column c goes to
// the sum c % 16, from the first to the last, and the sixteen sums are added in a tree. So a result
// depends on its row and its token alone: not on who else is in the call, nor on the processor.
struct RowKernel {
  const char* instructions;
  void (*multiply)(const RowMatrix& matrix, RowRange range, const Operands& operands);
  void (*decode)(const RowMatrix& matrix, std::size_t row, float* out);
  void (*attend)(const Attention& attention, std::size_t head);
  void (*normalise)(const Norm& norm, const float* x, float* out);
};

// The kernels that this processor can run, the fastest first. The last one is portable.
const std::vector<RowKernel>& usable_kernels();

const RowKernel& portable_kernel();
const RowKernel& avx2_kernel();
const RowKernel& avx512_kernel();

// Multiplies with up to `threads` threads, of which one is the caller's.
void multiply(const RowKernel& kernel, const RowMatrix& matrix, const Operands& operands,
              std::size_t threads);

// Softmax attention with scores divided by the root of the width.
void attend(const RowKernel& kernel, const Attention& attention, std::size_t threads);

}  // namespace sllm::products
