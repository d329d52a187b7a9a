// A decoder layer on the CPU, from Python.
#include "products/layer.hpp"

#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.hpp"
#include "bindings/products.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace sllm::bindings {
namespace {

using products::KeysValues;
using products::Layer;
using products::LayerShape;
using products::Passing;
using products::Projection;
using products::SpanPlaces;
using Matrices = std::map<std::string, StoredRows>;
using Vectors = std::map<std::string, Memory>;
using Rotation = std::pair<Memory, Memory>;  // cosines and sines
using Cache = std::pair<Memory, Memory>;     // keys and values
using Span = std::tuple<std::int64_t, std::int64_t, Memory>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

constexpr std::size_t kWhole = 16;  // what hidden and head widths are multiples of

const float* find_vector(const Vectors& vectors, const std::string& name, std::size_t count) {
  const auto found = vectors.find(name);
  if (found == vectors.end()) return nullptr;
  return exact_floats(found->second, count, name.c_str());
}

const float* need_vector(const Vectors& vectors, const std::string& name, std::size_t count) {
  const float* found = find_vector(vectors, name, count);
  if (found == nullptr) throw std::invalid_argument("a layer has a vector " + name);
  return found;
}

const StoredRows& need_matrix(const Matrices& matrices, const std::string& name) {
  const auto found = matrices.find(name);
  if (found == matrices.end()) throw std::invalid_argument("a layer has a matrix " + name);
  return found->second;
}

struct Weights {
  const Matrices& matrices;
  const Vectors& vectors;

  Projection project(const std::string& name, std::size_t rows, std::size_t columns) const {
    const products::RowMatrix& matrix = need_matrix(matrices, name).matrix;
    if (matrix.rows != rows || matrix.columns != columns) {
      throw std::invalid_argument("the matrix " + name + " has another shape than its layer");
    }
    return {matrix, find_vector(vectors, name + "_bias", rows)};
  }
};

LayerShape checked_shape(const std::map<std::string, std::int64_t>& numbers, bool interleaved,
                         double epsilon) {
  const auto number = [&](const char* name) { return checked_count(numbers.at(name)); };
  const LayerShape shape{
      number("hidden"),  number("heads"), number("kv_heads"),          number("width"),
      number("rotated"), interleaved,     static_cast<float>(epsilon), number("window")};
  if (shape.hidden == 0 || shape.hidden % kWhole != 0 || shape.width == 0 ||
      shape.width % kWhole != 0 || shape.kv_heads == 0 || shape.heads == 0 ||
      shape.heads % shape.kv_heads != 0 || shape.rotated > shape.width || shape.rotated % 2 != 0) {
    throw std::invalid_argument("a layer of this shape is not computed");
  }
  return shape;
}

Layer make_layer(const Matrices& matrices, const Vectors& vectors,
                 const std::map<std::string, std::int64_t>& numbers, bool interleaved,
                 double epsilon) {
  Layer layer{};
  layer.kernel = need_matrix(matrices, "query").kernel;
  layer.shape = checked_shape(numbers, interleaved, epsilon);
  const LayerShape& shape = layer.shape;
  const Weights weights{matrices, vectors};
  const std::size_t queries = shape.heads * shape.width;
  const std::size_t keys = shape.kv_heads * shape.width;
  const std::size_t inner = need_matrix(matrices, "gate").matrix.rows;
  layer.query = weights.project("query", queries, shape.hidden);
  layer.key = weights.project("key", keys, shape.hidden);
  layer.value = weights.project("value", keys, shape.hidden);
  layer.output = weights.project("output", shape.hidden, queries);
  layer.gate = weights.project("gate", inner, shape.hidden);
  layer.up = weights.project("up", inner, shape.hidden);
  layer.down = weights.project("down", shape.hidden, inner);
  layer.attention_norm = need_vector(vectors, "attention_norm", shape.hidden);
  layer.mlp_norm = need_vector(vectors, "mlp_norm", shape.hidden);
  layer.query_norm = find_vector(vectors, "query_norm", shape.width);
  layer.key_norm = find_vector(vectors, "key_norm", shape.width);
  return layer;
}

// Memory of keys and values, and how many places it has.
struct Places {
  KeysValues memory;
  std::size_t known;

  Places(const Layer& layer, const Cache& cache) {
    const std::size_t numbers = layer.shape.kv_heads * layer.shape.width;
    known = checked_size(std::get<1>(cache.first)) / (numbers * sizeof(float));
    memory = {exact_floats(cache.first, known * numbers, "the keys"),
              exact_floats(cache.second, known * numbers, "the values")};
  }

  const std::int64_t* check(const Memory& places) const {
    const std::size_t count = checked_size(std::get<1>(places)) / sizeof(std::int64_t);
    const auto* numbers = reinterpret_cast<const std::int64_t*>(
        exact_memory(places, count * sizeof(std::int64_t), "the places"));
    for (std::size_t i = 0; i < count; ++i) {
      if (numbers[i] < 0 || static_cast<std::size_t>(numbers[i]) >= known) {
        throw std::invalid_argument("the cache has no place " + std::to_string(numbers[i]));
      }
    }
    return numbers;
  }
};

Passing make_passing(const Layer& layer, const Memory& x) {
  const std::size_t hidden = layer.shape.hidden;
  const std::size_t tokens = checked_size(std::get<1>(x)) / (hidden * sizeof(float));
  return {exact_floats(x, tokens * hidden, "x"), tokens, nullptr, nullptr, nullptr};
}

float* checked_heads(const Layer& layer, const Memory& memory, std::size_t tokens) {
  return exact_floats(memory, tokens * layer.shape.heads * layer.shape.width, "the heads");
}

void begin(const Layer& layer, const Memory& x, const Rotation& rotation, const Cache& cache,
           const Memory& written, const Memory& query, std::int64_t threads) {
  Passing passing = make_passing(layer, x);
  const Places places(layer, cache);
  const std::size_t angles = passing.tokens * layer.shape.rotated / 2;
  passing.cos = exact_floats(rotation.first, angles, "the cosines");
  passing.sin = exact_floats(rotation.second, angles, "the sines");
  exact_memory(written, passing.tokens * sizeof(std::int64_t), "the places");
  passing.places = places.check(written);
  products::begin_layer(layer, passing, places.memory, checked_heads(layer, query, passing.tokens),
                        checked_threads(threads));
}

void attend(const Layer& layer, const Memory& query, const Cache& cache,
            const std::vector<Span>& spans, const Memory& mixed, std::int64_t threads) {
  const Places places(layer, cache);
  const std::size_t head_bytes = layer.shape.heads * layer.shape.width * sizeof(float);
  const std::size_t rows = checked_size(std::get<1>(query)) / head_bytes;
  std::vector<SpanPlaces> checked;
  for (const auto& [first, tokens, seen] : spans) {
    const SpanPlaces span{checked_count(first), checked_count(tokens), places.check(seen),
                          checked_size(std::get<1>(seen)) / sizeof(std::int64_t)};
    if (span.first_row + span.tokens > rows || span.count < span.tokens) {
      throw std::invalid_argument("a span has rows and places for all of its tokens");
    }
    checked.push_back(span);
  }
  products::attend_spans(layer, checked, places.memory, checked_heads(layer, query, rows),
                         checked_heads(layer, mixed, rows), checked_threads(threads));
}

void finish(const Layer& layer, const Memory& x, const Memory& mixed, std::int64_t threads) {
  const Passing passing = make_passing(layer, x);
  products::finish_layer(layer, passing, checked_heads(layer, mixed, passing.tokens),
                         checked_threads(threads));
}

}  // namespace

void bind_layer(nb::module_& module) {
  nb::class_<Layer>(module, "DecoderLayer", "Attention and a gated MLP. It keeps no memory.",
                    nb::is_final())
      .def_static("of", &make_layer, "matrices"_a, "vectors"_a, "shape"_a, nb::kw_only(),
                  "interleaved"_a, "epsilon"_a)
      .def("begin", &begin, "x"_a, nb::kw_only(), "rotation"_a, "cache"_a, "written"_a, "query"_a,
           "threads"_a, ReleaseGil())
      .def("attend", &attend, "query"_a, "cache"_a, nb::kw_only(), "spans"_a, "mixed"_a,
           "threads"_a, ReleaseGil())
      .def("finish", &finish, "x"_a, "mixed"_a, "threads"_a, ReleaseGil());
}

}  // namespace sllm::bindings
