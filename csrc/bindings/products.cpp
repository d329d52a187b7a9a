#include "bindings/products.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arguments.hpp"
#include "products/half.hpp"
#include "products/rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm::bindings {
namespace {

constexpr std::size_t kThreadsMax = 256;
// What no product of counts below it overflows at.
constexpr std::size_t kCountMax = std::size_t{1} << 31;

}  // namespace

std::size_t checked_count(std::int64_t count) {
  if (count < 0 || static_cast<std::size_t>(count) >= kCountMax) {
    throw std::invalid_argument(std::to_string(count) + " is no count of rows, columns or tokens");
  }
  return static_cast<std::size_t>(count);
}

std::byte* exact_memory(const Memory& memory, std::size_t expected, const char* what) {
  const auto& [address, size] = memory;
  std::byte* start = checked_memory(address, size);
  if (checked_size(size) != expected) {
    throw std::invalid_argument(std::string(what) + " has " + std::to_string(size) +
                                " bytes, and " + std::to_string(expected) + " are needed");
  }
  return start;
}

std::size_t checked_threads(std::int64_t threads) {
  if (threads < 1 || static_cast<std::size_t>(threads) > kThreadsMax) {
    throw std::invalid_argument(std::to_string(threads) + " is no count of threads");
  }
  return static_cast<std::size_t>(threads);
}

float* exact_floats(const Memory& memory, std::size_t count, const char* what) {
  return reinterpret_cast<float*>(exact_memory(memory, count * sizeof(float), what));
}

namespace {

using products::Format;
using products::RowKernel;
using products::RowMatrix;
using products::ScaleType;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

constexpr std::size_t kScales = 2;  // affine's: scales and biases

const std::map<std::string, Format> kFormats{
    {"Q4_0", Format::kQ4_0},          {"Q4_1", Format::kQ4_1},
    {"Q5_0", Format::kQ5_0},          {"Q5_1", Format::kQ5_1},
    {"Q8_0", Format::kQ8_0},          {"Q4_K", Format::kQ4_K},
    {"Q5_K", Format::kQ5_K},          {"Q6_K", Format::kQ6_K},
    {"affine_q4", Format::kAffineQ4}, {"float16", Format::kFloat16},
    {"bfloat16", Format::kBfloat16},
};
const std::map<std::string, ScaleType> kScaleTypes{
    {"float16", ScaleType::kFloat16},
    {"bfloat16", ScaleType::kBfloat16},
    {"float32", ScaleType::kFloat32},
};

template <typename Value>
Value find(const std::map<std::string, Value>& values, const std::string& name) {
  const auto found = values.find(name);
  if (found == values.end()) throw std::invalid_argument(name + " is not known here");
  return found->second;
}

const std::uint8_t* exact_bytes(const Memory& memory, std::size_t expected, const char* what) {
  return reinterpret_cast<const std::uint8_t*>(exact_memory(memory, expected, what));
}

const RowKernel& find_kernel(const std::string& instructions) {
  const std::vector<RowKernel>& kernels = products::usable_kernels();
  if (instructions.empty()) return kernels.front();
  for (const RowKernel& kernel : kernels) {
    if (kernel.instructions == instructions) return kernel;
  }
  throw std::invalid_argument("this processor has no " + instructions);
}

StoredRows stored_rows(const std::string& format, std::int64_t rows, std::int64_t columns,
                       const Memory& data, const std::string& instructions) {
  RowMatrix matrix{};
  matrix.format = find(kFormats, format);
  matrix.rows = checked_count(rows);
  matrix.columns = checked_count(columns);
  const products::BlockShape block = products::block_shape(matrix.format);
  if (matrix.columns == 0 || matrix.columns % block.weights != 0) {
    throw std::invalid_argument(std::to_string(columns) + " columns are no whole blocks of " +
                                format);
  }
  const std::size_t row_bytes = matrix.columns / block.weights * block.bytes;
  matrix.data = exact_bytes(data, matrix.rows * row_bytes, "the matrix");
  return {matrix, &find_kernel(instructions)};
}

StoredRows affine_rows(std::int64_t rows, std::int64_t columns, std::int64_t group,
                       const std::string& scale_type, const std::vector<Memory>& memories,
                       const std::string& instructions) {
  if (memories.size() != 1 + kScales) {
    throw std::invalid_argument("an affine matrix has words, scales and biases");
  }
  if (group != 64 && group != 128) {
    throw std::invalid_argument(std::to_string(group) + " is no group of an affine matrix");
  }
  StoredRows made = stored_rows("affine_q4", rows, columns, memories[0], instructions);
  RowMatrix& matrix = made.matrix;
  matrix.group = static_cast<std::size_t>(group);
  if (matrix.columns % matrix.group != 0) {
    throw std::invalid_argument(std::to_string(columns) + " columns are no whole groups");
  }
  matrix.scale_type = find(kScaleTypes, scale_type);
  const std::size_t scale_bytes = matrix.scale_type == ScaleType::kFloat32 ? 4 : 2;
  const std::size_t size = matrix.rows * (matrix.columns / matrix.group) * scale_bytes;
  matrix.scales = exact_bytes(memories[1], size, "the scales");
  matrix.biases = exact_bytes(memories[2], size, "the biases");
  return made;
}

void multiply(const StoredRows& self, const Memory& x, std::int64_t tokens, const Memory& out,
              std::int64_t threads) {
  const RowMatrix& matrix = self.matrix;
  const std::size_t count = checked_count(tokens);
  const std::byte* numbers = exact_memory(x, count * matrix.columns * sizeof(float), "x");
  std::byte* products = exact_memory(out, count * matrix.rows * sizeof(float), "the result");
  const products::Operands operands{reinterpret_cast<const float*>(numbers), count,
                                    reinterpret_cast<float*>(products)};
  products::multiply(*self.kernel, matrix, operands, checked_threads(threads));
}

void decode(const StoredRows& self, const Memory& numbers, const Memory& out) {
  const RowMatrix& matrix = self.matrix;
  const std::size_t count = checked_size(std::get<1>(numbers)) / sizeof(std::int64_t);
  const auto* rows = exact_bytes(numbers, count * sizeof(std::int64_t), "the row numbers");
  auto* decoded = reinterpret_cast<float*>(
      exact_memory(out, count * matrix.columns * sizeof(float), "the result"));
  for (std::size_t i = 0; i < count; ++i, decoded += matrix.columns) {
    const auto row = products::load_number<std::int64_t>(rows + i * sizeof(std::int64_t));
    if (row < 0 || static_cast<std::size_t>(row) >= matrix.rows) {
      throw std::invalid_argument("the matrix has no row " + std::to_string(row));
    }
    self.kernel->decode(matrix, static_cast<std::size_t>(row), decoded);
  }
}

void attend(const Memory& query, const std::vector<Memory>& cache, const Memory& places,
            const std::tuple<std::int64_t, std::int64_t, std::int64_t>& shape, const Memory& out,
            std::int64_t threads) {
  products::Attention attention{};
  attention.heads = checked_count(std::get<0>(shape));
  attention.kv_heads = checked_count(std::get<1>(shape));
  attention.width = checked_count(std::get<2>(shape));
  if (attention.kv_heads == 0 || attention.heads == 0 || attention.width == 0 ||
      attention.heads % attention.kv_heads != 0 || attention.width % 16 != 0 || cache.size() != 2) {
    throw std::invalid_argument("these are no heads that attend");
  }
  const std::size_t query_numbers = attention.heads * attention.width;
  const std::size_t place_numbers = attention.kv_heads * attention.width;
  const std::size_t known = checked_size(std::get<1>(cache[0])) / (place_numbers * sizeof(float));
  attention.count = checked_size(std::get<1>(places)) / sizeof(std::int64_t);
  attention.query = exact_floats(query, query_numbers, "the query");
  attention.out = exact_floats(out, query_numbers, "the result");
  attention.keys = exact_floats(cache[0], known * place_numbers, "the keys");
  attention.values = exact_floats(cache[1], known * place_numbers, "the values");
  attention.places = reinterpret_cast<const std::int64_t*>(
      exact_bytes(places, attention.count * sizeof(std::int64_t), "the places"));
  for (std::size_t i = 0; i < attention.count; ++i) {
    if (attention.places[i] < 0 || static_cast<std::size_t>(attention.places[i]) >= known) {
      throw std::invalid_argument("the cache has no place " + std::to_string(attention.places[i]));
    }
  }
  products::attend(find_kernel(""), attention, checked_threads(threads));
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const RowKernel& kernel : products::usable_kernels())
    names.emplace_back(kernel.instructions);
  return names;
}

}  // namespace

void bind_products(nb::module_& module) {
  module.def("instruction_sets", &instruction_sets);
  module.def("attend", &attend, "query"_a, "cache"_a, "places"_a, "shape"_a, "out"_a, "threads"_a,
             ReleaseGil());
  nb::class_<StoredRows>(module, "StoredRows",
                         "A matrix whose rows are stored as few bytes. It does not keep them.",
                         nb::is_final())
      .def_static("of", &stored_rows, "scheme"_a, nb::kw_only(), "rows"_a, "columns"_a, "data"_a,
                  "instructions"_a = "")
      .def_static("of_affine", &affine_rows, nb::kw_only(), "rows"_a, "columns"_a, "group"_a,
                  "scale_type"_a, "memories"_a, "instructions"_a = "")
      .def("multiply", &multiply, "x"_a, "tokens"_a, "out"_a, "threads"_a, ReleaseGil())
      .def("decode", &decode, "rows"_a, "out"_a, ReleaseGil());
}

}  // namespace sllm::bindings
