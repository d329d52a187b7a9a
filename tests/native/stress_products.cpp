#include "stress_products.hpp"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "products/layer.hpp"
#include "products/rows.hpp"

namespace {

using namespace sllm::products;

constexpr Format kFormats[] = {Format::kQ4_0,    Format::kQ4_1,     Format::kQ8_0,
                               Format::kQ4_K,    Format::kQ5_K,     Format::kQ6_K,
                               Format::kFloat16, Format::kBfloat16, Format::kAffineQ4};

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "stress: %s\n", what);
  std::abort();
}

std::vector<float> random_floats(std::mt19937& engine, std::size_t count) {
  std::normal_distribution<float> normal(0, 0.2F);
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(engine);
  return numbers;
}

// Bytes of which every 16-bit float is finite, and small.
std::vector<std::uint8_t> random_blocks(std::mt19937& engine, std::size_t size) {
  std::vector<std::uint8_t> bytes(size);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(engine() & 0xAFU & 0x3FU);
  return bytes;
}

// A matrix and its memory, which ends where the matrix does.
struct Stored {
  std::vector<std::uint8_t> data, scales, biases;
  RowMatrix matrix;

  Stored(std::mt19937& engine, Format format, std::size_t rows, std::size_t columns)
      : matrix{format, rows, columns, nullptr, nullptr, nullptr, ScaleType::kFloat16, 64} {
    const BlockShape block = block_shape(format);
    data = random_blocks(engine, rows * (columns / block.weights) * block.bytes);
    if (format == Format::kAffineQ4) {
      scales = random_blocks(engine, rows * (columns / matrix.group) * 2);
      biases = random_blocks(engine, scales.size());
    }
    matrix.data = data.data();
    matrix.scales = scales.data();
    matrix.biases = biases.data();
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void multiply_all_ways(unsigned seed) {
  std::mt19937 engine(seed);
  for (const Format format : kFormats) {
    const bool floats = block_shape(format).weights == 1;
    const std::size_t columns = floats ? 256 + seed % 40 : 256 * (1 + seed % 2);
    const std::size_t rows = 60 + engine() % 200;
    const std::size_t tokens = 1 + engine() % 6;
    const Stored stored(engine, format, rows, columns);
    const std::vector<float> x = random_floats(engine, tokens * columns);
    std::vector<float> expected(tokens * rows);
    multiply(portable_kernel(), stored.matrix, {x.data(), tokens, expected.data()}, 1);
    for (const RowKernel& kernel : usable_kernels()) {
      std::vector<float> found(expected.size());
      multiply(kernel, stored.matrix, {x.data(), tokens, found.data()}, 1 + engine() % 5);
      require(same_bits(found, expected), "a product differs");
      std::vector<float> decoded(columns);
      kernel.decode(stored.matrix, rows - 1, decoded.data());
    }
  }
}

// A layer over weights of its own.
struct LayerCase {
  static constexpr std::size_t kHidden = 256, kInner = 512, kPlaces = 64;
  std::mt19937 engine;
  Stored query, key, value, output, gate, up, down;
  std::vector<float> norm, head_norm, bias, cos, sin, x, keys, values;
  std::vector<std::int64_t> written, seen;
  std::size_t tokens;

  explicit LayerCase(unsigned seed)
      : engine(seed),
        query(engine, Format::kQ4_1, 256, kHidden),
        key(engine, Format::kQ8_0, 128, kHidden),
        value(engine, Format::kBfloat16, 128, kHidden),
        output(engine, Format::kQ4_0, kHidden, 256),
        gate(engine, Format::kQ4_1, kInner, kHidden),
        up(engine, Format::kQ4_K, kInner, kHidden),
        down(engine, Format::kQ6_K, kHidden, kInner),
        norm(random_floats(engine, kHidden)),
        head_norm(random_floats(engine, 32)),
        bias(random_floats(engine, kHidden)),
        keys(random_floats(engine, kPlaces * 128)),
        values(random_floats(engine, kPlaces * 128)),
        tokens(1 + seed % 12) {
    cos = random_floats(engine, tokens * 16);
    sin = random_floats(engine, tokens * 16);
    x = random_floats(engine, tokens * kHidden);
    for (std::size_t i = 0; i < tokens + 20; ++i) {
      seen.push_back(static_cast<std::int64_t>((i * 7 + seed) % kPlaces));
    }
    written.assign(seen.end() - static_cast<std::ptrdiff_t>(tokens), seen.end());
  }

  std::vector<float> compute(const RowKernel& kernel, std::size_t threads) {
    const LayerShape shape{kHidden, 8, 4, 32, 32, false, 1e-5F, 17};
    const Layer layer{&kernel,
                      shape,
                      {query.matrix, bias.data()},
                      {key.matrix, nullptr},
                      {value.matrix, nullptr},
                      {output.matrix, nullptr},
                      {gate.matrix, nullptr},
                      {up.matrix, nullptr},
                      {down.matrix, bias.data()},
                      norm.data(),
                      norm.data(),
                      head_norm.data(),
                      nullptr};
    std::vector<float> states = x;
    std::vector<float> asked(tokens * 256);
    std::vector<float> mixed(tokens * 256);
    const Passing passing{states.data(), tokens, cos.data(), sin.data(), written.data()};
    const KeysValues cache{keys.data(), values.data()};
    const SpanPlaces span{0, tokens, seen.data(), seen.size()};
    begin_layer(layer, passing, cache, asked.data(), threads);
    attend_spans(layer, {&span, 1}, cache, asked.data(), mixed.data(), threads);
    finish_layer(layer, passing, mixed.data(), threads);
    return states;
  }
};

void compute_layers(unsigned seed) {
  LayerCase layer(seed);
  const std::vector<float> expected = layer.compute(portable_kernel(), 1);
  for (const RowKernel& kernel : usable_kernels()) {
    require(same_bits(layer.compute(kernel, 2 + seed % 4), expected), "a layer differs");
  }
}

}  // namespace

void stress_products(unsigned seed) {
  std::vector<std::jthread> callers;  // One has the threads, the others do without.
  for (unsigned i = 0; i < 3; ++i) {
    callers.emplace_back([=] {
      multiply_all_ways(seed * 3 + i);
      compute_layers(seed * 3 + i);
    });
  }
}
