#include "products/layer.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "products/parts.hpp"

namespace sllm::products {
namespace {

// Fewer tokens than this are normalised and rotated by the caller: threads would cost more.
constexpr std::size_t kTokensWorthThreads = 8;

struct Scratch {
  explicit Scratch(std::size_t count) : numbers(std::make_unique_for_overwrite<float[]>(count)) {}
  float* get() const { return numbers.get(); }

  std::unique_ptr<float[]> numbers;
};

template <typename Function>
void for_each_token(std::size_t tokens, std::size_t threads, const Function& function) {
  for_each_item(tokens, tokens < kTokensWorthThreads ? 1 : threads, function);
}

void add(float* to, const float* numbers, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i] += numbers[i];
}

void rotate(const LayerShape& shape, const float* cos, const float* sin, float* head) {
  const std::size_t pairs = shape.rotated / 2;
  const std::size_t step = shape.interleaved ? 2 : 1;
  const std::size_t apart = shape.interleaved ? 1 : pairs;
  for (std::size_t i = 0; i < pairs; ++i) {
    float& first = head[i * step];
    float& second = head[i * step + apart];
    const float turned = first * cos[i] - second * sin[i];
    second = second * cos[i] + first * sin[i];
    first = turned;
  }
}

// Normalises and rotates the heads of one token.
void place_heads(const Layer& layer, const Passing& passing, std::size_t token, float* heads,
                 const Projection& of, const float* norm) {
  const LayerShape& shape = layer.shape;
  const std::size_t pairs = shape.rotated / 2;
  if (of.bias != nullptr) add(heads, of.bias, of.matrix.rows);
  for (float* head = heads; head != heads + of.matrix.rows; head += shape.width) {
    if (norm != nullptr) layer.kernel->normalise({norm, shape.width, shape.epsilon}, head, head);
    rotate(shape, passing.cos + token * pairs, passing.sin + token * pairs, head);
  }
}

// Multiplies `from` and adds the products to the tokens' states.
void add_products(const Layer& layer, const Projection& by, const Passing& passing,
                  const float* from, std::size_t threads) {
  const std::size_t hidden = layer.shape.hidden;
  const Scratch products(passing.tokens * hidden);
  multiply(*layer.kernel, by.matrix, {from, passing.tokens, products.get()}, threads);
  for_each_token(passing.tokens, threads, [&](std::size_t token) {
    float* added = products.get() + token * hidden;
    if (by.bias != nullptr) add(added, by.bias, hidden);
    add(passing.x + token * hidden, added, hidden);
  });
}

void normalise_tokens(const Layer& layer, const Passing& passing, const float* weight, float* out,
                      std::size_t threads) {
  const std::size_t hidden = layer.shape.hidden;
  for_each_token(passing.tokens, threads, [&](std::size_t token) {
    const std::size_t at = token * hidden;
    layer.kernel->normalise({weight, hidden, layer.shape.epsilon}, passing.x + at, out + at);
  });
}

// silu(gate) * up, of some columns of every token.
void activate(const Layer& layer, RowRange range, std::size_t tokens, float* gate,
              const float* up) {
  const std::size_t width = layer.gate.matrix.rows;
  for (std::size_t token = 0; token < tokens; ++token) {
    for (std::size_t row = range.first; row < range.last; ++row) {
      const std::size_t at = token * width + row;
      const float by = layer.gate.bias == nullptr ? gate[at] : gate[at] + layer.gate.bias[row];
      const float of = layer.up.bias == nullptr ? up[at] : up[at] + layer.up.bias[row];
      gate[at] = by / (1.0F + std::exp(-by)) * of;
    }
  }
}

}  // namespace

void begin_layer(const Layer& layer, const Passing& passing, const KeysValues& cache, float* query,
                 std::size_t threads) {
  const LayerShape& shape = layer.shape;
  const std::size_t tokens = passing.tokens;
  const std::size_t place_numbers = shape.kv_heads * shape.width;
  const std::size_t query_numbers = shape.heads * shape.width;
  const Scratch normed(tokens * shape.hidden);
  const Scratch keys(tokens * place_numbers);
  const Scratch values(tokens * place_numbers);
  normalise_tokens(layer, passing, layer.attention_norm, normed.get(), threads);
  const Product products[] = {{layer.query.matrix, {normed.get(), tokens, query}},
                              {layer.key.matrix, {normed.get(), tokens, keys.get()}},
                              {layer.value.matrix, {normed.get(), tokens, values.get()}}};
  multiply_all(*layer.kernel, products, threads);
  for_each_token(tokens, threads, [&](std::size_t token) {
    float* key = keys.get() + token * place_numbers;
    float* value = values.get() + token * place_numbers;
    place_heads(layer, passing, token, query + token * query_numbers, layer.query,
                layer.query_norm);
    place_heads(layer, passing, token, key, layer.key, layer.key_norm);
    if (layer.value.bias != nullptr) add(value, layer.value.bias, place_numbers);
    const std::size_t place = static_cast<std::size_t>(passing.places[token]) * place_numbers;
    std::copy_n(key, place_numbers, cache.keys + place);
    std::copy_n(value, place_numbers, cache.values + place);
  });
}

void attend_spans(const Layer& layer, std::span<const SpanPlaces> spans, const KeysValues& cache,
                  const float* query, float* mixed, std::size_t threads) {
  const LayerShape& shape = layer.shape;
  const std::size_t numbers = shape.heads * shape.width;
  std::vector<Attention> tokens;
  for (const SpanPlaces& span : spans) {
    for (std::size_t token = 0; token < span.tokens; ++token) {
      const std::size_t end = span.count - (span.tokens - 1 - token);
      const bool all = shape.window == 0 || end <= shape.window;
      const std::size_t first = all ? 0 : end - shape.window;
      const std::size_t at = (span.first_row + token) * numbers;
      tokens.push_back({query + at, cache.keys, cache.values, span.places + first, end - first,
                        shape.heads, shape.kv_heads, shape.width, mixed + at});
    }
  }
  attend_all(*layer.kernel, tokens, threads);
}

void finish_layer(const Layer& layer, const Passing& passing, const float* mixed,
                  std::size_t threads) {
  const std::size_t tokens = passing.tokens;
  const RowMatrix& gate = layer.gate.matrix;
  const RowMatrix& up = layer.up.matrix;
  add_products(layer, layer.output, passing, mixed, threads);
  const Scratch normed(tokens * layer.shape.hidden);
  normalise_tokens(layer, passing, layer.mlp_norm, normed.get(), threads);
  const Scratch gated(tokens * gate.rows);
  const Scratch upper(tokens * gate.rows);
  const std::size_t part_rows = rows_of_part(gate.rows, 2 * gate.columns * tokens, threads);
  for_each_item(divide_up(gate.rows, part_rows), threads, [&](std::size_t part) {
    const std::size_t first = part * part_rows;
    const RowRange range{first, std::min(first + part_rows, gate.rows)};
    layer.kernel->multiply(gate, range, {normed.get(), tokens, gated.get()});
    layer.kernel->multiply(up, range, {normed.get(), tokens, upper.get()});
    activate(layer, range, tokens, gated.get(), upper.get());
  });
  add_products(layer, layer.down, passing, gated.get(), threads);
}

}  // namespace sllm::products
