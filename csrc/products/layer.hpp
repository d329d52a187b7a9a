// A decoder layer on the CPU: attention and a gated MLP, over float32 states.
//
// One call per layer instead of some thirty operations, of which each costs microseconds to ask
// for: as much as the products of a small model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "products/rows.hpp"

namespace sllm::products {

struct LayerShape {
  std::size_t hidden;
  std::size_t heads;
  std::size_t kv_heads;
  std::size_t width;    // of a head
  std::size_t rotated;  // numbers of a head that are rotated
  bool interleaved;     // whether neighbours are rotated together, or halves
  float epsilon;
  std::size_t window;  // tokens that a token sees; 0 for all
};

// Without a bias, nullptr.
struct Projection {
  RowMatrix matrix;
  const float* bias;
};

// A layer's weights. Heads are normalised where there is something to do it with.
struct Layer {
  const RowKernel* kernel;
  LayerShape shape;
  Projection query, key, value, output;
  Projection gate, up, down;
  const float* attention_norm;
  const float* mlp_norm;
  const float* query_norm;
  const float* key_norm;
};

// Tokens on their way through the layers: `x` is changed in place. Cosines and sines are of each
// token, rotated / 2 of either; `places` is where its key and value go.
struct Passing {
  float* x;
  std::size_t tokens;
  const float* cos;
  const float* sin;
  const std::int64_t* places;
};

struct KeysValues {
  float* keys;
  float* values;
};

// Tokens of one sequence, and the places of all that they see, of which the last `tokens` are
// their own.
struct SpanPlaces {
  std::size_t first_row;
  std::size_t tokens;
  const std::int64_t* places;
  std::size_t count;
};

// Writes rotated queries (tokens, heads, width), and keys and values where they belong.
void begin_layer(const Layer& layer, const Passing& passing, const KeysValues& cache, float* query,
                 std::size_t threads);

// Writes what some spans' tokens attend to, in the rows that they have in `mixed`.
void attend_spans(const Layer& layer, std::span<const SpanPlaces> spans, const KeysValues& cache,
                  const float* query, float* mixed, std::size_t threads);

// Adds what attention and the MLP say.
void finish_layer(const Layer& layer, const Passing& passing, const float* mixed,
                  std::size_t threads);

}  // namespace sllm::products
