// Products over `Lanes`, for each format. Included as row_formats.hpp is, and after it.

constexpr std::size_t kChunk = 16;
constexpr std::size_t kRowsAtOnce = 4;
// Rows are unpacked into so many numbers at a time where there are several tokens: half a second-
// level cache.
constexpr std::size_t kBufferNumbers = 96 << 10;
constexpr std::size_t kBufferRowsMax = 64;

// A chunk of `count` numbers, the rest of it zeros.
SLLM_INLINE Floats load_some(const float* numbers, std::size_t count) {
  float padded[kChunk] = {};
  std::memcpy(padded, numbers, count * sizeof(float));
  return Lanes::load(padded);
}

struct BytesRange {
  const std::uint8_t* start;
  std::size_t size;
};

// Asks for bytes before they are used; some may lie behind the matrix, which does no harm.
SLLM_INLINE void prefetch(BytesRange range) {
  constexpr std::size_t kLineBytes = 64;
  for (std::size_t at = 0; at < range.size; at += kLineBytes) {
    __builtin_prefetch(range.start + at);
  }
}

// A matrix of blocks: no row has a rest.
template <typename Block>
struct Blocks {
  static SLLM_INLINE std::size_t steps(const RowMatrix& matrix) {
    return matrix.columns / Block::weights(matrix);
  }
  static SLLM_INLINE std::size_t step_weights(const RowMatrix& matrix) {
    return Block::weights(matrix);
  }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t row, std::size_t step,
                                 Use use) {
    Block::decode(matrix, row * steps(matrix) + step, use);
  }
  static SLLM_INLINE Floats rest(const RowMatrix&, std::size_t) { return Lanes::zero(); }
  static SLLM_INLINE BytesRange stored(const RowMatrix& matrix, std::size_t row, std::size_t step) {
    const std::size_t size = Block::bytes(matrix);
    return {matrix.data + (row * steps(matrix) + step) * size, size};
  }
};

template <bool Brain>
struct Floats16 {
  static SLLM_INLINE std::size_t steps(const RowMatrix& matrix) { return matrix.columns / kChunk; }
  static SLLM_INLINE std::size_t step_weights(const RowMatrix&) { return kChunk; }
  static SLLM_INLINE Floats load(const std::uint8_t* data) {
    if constexpr (Brain) return Lanes::bfloats(data);
    return Lanes::halves(data);
  }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t row, std::size_t step,
                                 Use use) {
    use(0, load(matrix.data + 2 * (row * matrix.columns + step * kChunk)));
  }
  static SLLM_INLINE BytesRange stored(const RowMatrix& matrix, std::size_t row, std::size_t step) {
    return {matrix.data + 2 * (row * matrix.columns + step * kChunk), 2 * kChunk};
  }
  static SLLM_INLINE Floats rest(const RowMatrix& matrix, std::size_t row) {
    const std::size_t count = matrix.columns % kChunk;
    std::uint8_t padded[2 * kChunk] = {};
    std::memcpy(padded, matrix.data + 2 * ((row + 1) * matrix.columns - count), 2 * count);
    return load(padded);
  }
};

// The numbers of a row, in chunks; `out` has room for whole ones.
template <typename Source>
void decode_row(const RowMatrix& matrix, std::size_t row, float* out) {
  const std::size_t weights = Source::step_weights(matrix);
  for (std::size_t step = 0; step < Source::steps(matrix); ++step) {
    Source::decode(matrix, row, step, [&](std::size_t chunk, Floats numbers) SLLM_INLINE_LAMBDA {
      Lanes::store(out + step * weights + chunk * kChunk, numbers);
    });
  }
  const std::size_t rest = matrix.columns % kChunk;
  if (rest != 0) Lanes::store(out + matrix.columns - rest, Source::rest(matrix, row));
}

// One token by some rows: numbers go from a block to the sum without touching memory.
template <typename Source, std::size_t Rows>
SLLM_INLINE void multiply_token(const RowMatrix& matrix, std::size_t first, const float* x,
                                float* out) {
  Floats sums[Rows];
  for (auto& sum : sums) sum = Lanes::zero();
  const std::size_t weights = Source::step_weights(matrix);
  for (std::size_t step = 0; step < Source::steps(matrix); ++step) {
    for (std::size_t i = 0; i < Rows; ++i) {
      // The next rows in the order of their bytes, which the processor then goes on with by itself.
      prefetch(Source::stored(matrix, first + Rows, step * Rows + i));
      Source::decode(matrix, first + i, step,
                     [&](std::size_t chunk, Floats numbers) SLLM_INLINE_LAMBDA {
                       const Floats with = Lanes::load(x + step * weights + chunk * kChunk);
                       sums[i] = Lanes::multiply_add(numbers, with, sums[i]);
                     });
    }
  }
  const std::size_t rest = matrix.columns % kChunk;
  if (rest != 0) {
    const Floats with = load_some(x + matrix.columns - rest, rest);
    for (std::size_t i = 0; i < Rows; ++i) {
      sums[i] = Lanes::multiply_add(Source::rest(matrix, first + i), with, sums[i]);
    }
  }
  for (std::size_t i = 0; i < Rows; ++i) out[first + i] = Lanes::sum(sums[i]);
}

// Unpacked rows, whole chunks each.
struct Unpacked {
  const float* numbers;
  std::size_t stride;
  std::size_t columns;
};

// Some tokens by some unpacked rows; the sums are those of multiply_token.
template <std::size_t Rows, std::size_t Tokens>
SLLM_INLINE void multiply_tile(const Unpacked& rows, const float* x, float* out,
                               std::size_t out_stride) {
  Floats sums[Rows][Tokens];
  for (auto& row : sums) {
    for (auto& sum : row) sum = Lanes::zero();
  }
  const std::size_t rest = rows.columns % kChunk;
  const std::size_t whole = rows.columns - rest;
  for (std::size_t column = 0; column < whole; column += kChunk) {
    Floats with[Tokens];
    for (std::size_t t = 0; t < Tokens; ++t) with[t] = Lanes::load(x + t * rows.columns + column);
    for (std::size_t i = 0; i < Rows; ++i) {
      const Floats numbers = Lanes::load(rows.numbers + i * rows.stride + column);
      for (std::size_t t = 0; t < Tokens; ++t) {
        sums[i][t] = Lanes::multiply_add(numbers, with[t], sums[i][t]);
      }
    }
  }
  for (std::size_t t = 0; rest != 0 && t < Tokens; ++t) {
    const Floats with = load_some(x + t * rows.columns + whole, rest);
    for (std::size_t i = 0; i < Rows; ++i) {
      const Floats numbers = Lanes::load(rows.numbers + i * rows.stride + whole);
      sums[i][t] = Lanes::multiply_add(numbers, with, sums[i][t]);
    }
  }
  for (std::size_t i = 0; i < Rows; ++i) {
    for (std::size_t t = 0; t < Tokens; ++t) out[t * out_stride + i] = Lanes::sum(sums[i][t]);
  }
}

// Some tokens by all rows that are unpacked.
template <std::size_t Tokens>
void multiply_unpacked(const Unpacked& rows, std::size_t count, const float* x, float* out,
                       std::size_t out_stride) {
  constexpr std::size_t kTile = Lanes::kTileRows;
  Unpacked tile = rows;
  std::size_t row = 0;
  for (; row + kTile <= count; row += kTile, tile.numbers += kTile * rows.stride) {
    multiply_tile<kTile, Tokens>(tile, x, out + row, out_stride);
  }
  for (; row < count; ++row, tile.numbers += rows.stride) {
    multiply_tile<1, Tokens>(tile, x, out + row, out_stride);
  }
}

// Several tokens: rows are unpacked once for all of them.
template <typename Source>
void multiply_tokens(const RowMatrix& matrix, RowRange range, const Operands& operands) {
  constexpr std::size_t kTile = Lanes::kTileTokens;
  const std::size_t stride = (matrix.columns + kChunk - 1) / kChunk * kChunk;
  const std::size_t rows_max =
      std::clamp<std::size_t>(kBufferNumbers / stride, kRowsAtOnce, kBufferRowsMax);
  thread_local std::vector<float> buffer;
  if (buffer.size() < rows_max * stride) buffer.resize(rows_max * stride);
  const Unpacked rows{buffer.data(), stride, matrix.columns};
  for (std::size_t first = range.first; first < range.last; first += rows_max) {
    const std::size_t count = std::min(rows_max, range.last - first);
    for (std::size_t i = 0; i < count; ++i) {
      decode_row<Source>(matrix, first + i, buffer.data() + i * stride);
    }
    std::size_t token = 0;
    const float* x = operands.x;
    float* out = operands.out + first;
    for (; token + kTile <= operands.tokens; token += kTile) {
      multiply_unpacked<kTile>(rows, count, x, out, matrix.rows);
      x += kTile * matrix.columns;
      out += kTile * matrix.rows;
    }
    for (; token < operands.tokens; ++token, x += matrix.columns, out += matrix.rows) {
      multiply_unpacked<1>(rows, count, x, out, matrix.rows);
    }
  }
}

template <typename Source>
void multiply_rows(const RowMatrix& matrix, RowRange range, const Operands& operands) {
  if (operands.tokens > 1) return multiply_tokens<Source>(matrix, range, operands);
  std::size_t row = range.first;
  for (; row + kRowsAtOnce <= range.last; row += kRowsAtOnce) {
    multiply_token<Source, kRowsAtOnce>(matrix, row, operands.x, operands.out);
  }
  for (; row < range.last; ++row) {
    multiply_token<Source, 1>(matrix, row, operands.x, operands.out);
  }
}

// Calls `act` with the type that reads a matrix's rows.
template <typename Act>
void with_source(const RowMatrix& matrix, Act act) {
  switch (matrix.format) {
    case Format::kQ4_0:
      return act(Blocks<BlockQ4_0>{});
    case Format::kQ4_1:
      return act(Blocks<BlockQ4_1>{});
    case Format::kQ5_0:
      return act(Blocks<BlockQ5_0>{});
    case Format::kQ5_1:
      return act(Blocks<BlockQ5_1>{});
    case Format::kQ8_0:
      return act(Blocks<BlockQ8_0>{});
    case Format::kQ4_K:
      return act(Blocks<BlockQ4_K>{});
    case Format::kQ5_K:
      return act(Blocks<BlockQ5_K>{});
    case Format::kQ6_K:
      return act(Blocks<BlockQ6_K>{});
    case Format::kAffineQ4:
      switch (matrix.scale_type) {
        case ScaleType::kFloat16:
          return act(Blocks<GroupAffineQ4<ScaleType::kFloat16>>{});
        case ScaleType::kBfloat16:
          return act(Blocks<GroupAffineQ4<ScaleType::kBfloat16>>{});
        case ScaleType::kFloat32:
          return act(Blocks<GroupAffineQ4<ScaleType::kFloat32>>{});
      }
      return;
    case Format::kFloat16:
      return act(Floats16<false>{});
    case Format::kBfloat16:
      return act(Floats16<true>{});
  }
}

void multiply_range(const RowMatrix& matrix, RowRange range, const Operands& operands) {
  with_source(matrix,
              [&]<typename Source>(Source) { multiply_rows<Source>(matrix, range, operands); });
}

// Sixteen numbers at a time, also at a row's end: hence through a row of its own.
void decode_one(const RowMatrix& matrix, std::size_t row, float* out) {
  thread_local std::vector<float> buffer;
  buffer.resize((matrix.columns + kChunk - 1) / kChunk * kChunk);
  with_source(matrix,
              [&]<typename Source>(Source) { decode_row<Source>(matrix, row, buffer.data()); });
  std::memcpy(out, buffer.data(), matrix.columns * sizeof(float));
}

SLLM_INLINE float multiply_vectors(const float* a, const float* b, std::size_t width) {
  Floats sum = Lanes::zero();
  for (std::size_t at = 0; at < width; at += kChunk) {
    sum = Lanes::multiply_add(Lanes::load(a + at), Lanes::load(b + at), sum);
  }
  return Lanes::sum(sum);
}

// One head of one token.
void attend_head(const Attention& attention, std::size_t head) {
  const std::size_t width = attention.width;
  const std::size_t place_numbers = attention.kv_heads * width;
  const std::size_t start = head / (attention.heads / attention.kv_heads) * width;
  const float* query = attention.query + head * width;
  const float scale = 1.0F / std::sqrt(static_cast<float>(width));
  thread_local std::vector<float> shares;
  shares.resize(attention.count);
  const auto number_of = [&](std::size_t i) {
    return static_cast<std::size_t>(attention.places[i]) * place_numbers + start;
  };
  for (std::size_t i = 0; i < attention.count; ++i) {
    shares[i] = scale * multiply_vectors(query, attention.keys + number_of(i), width);
  }
  const float highest = *std::max_element(shares.begin(), shares.end());
  float total = 0;
  for (float& share : shares) total += share = std::exp(share - highest);
  for (std::size_t at = 0; at < width; at += kChunk) {
    Floats sum = Lanes::zero();
    for (std::size_t i = 0; i < attention.count; ++i) {
      const Floats value = Lanes::load(attention.values + number_of(i) + at);
      sum = Lanes::multiply_add(Lanes::broadcast(shares[i]), value, sum);
    }
    Lanes::store(attention.out + head * width + at,
                 Lanes::multiply(sum, Lanes::broadcast(1.0F / total)));
  }
}

// The normalised number is rounded before it meets the weight, as PyTorch's is.
void normalise_token(const Norm& norm, const float* x, float* out) {
  const float squares = multiply_vectors(x, x, norm.count);
  const float mean = squares / static_cast<float>(norm.count);
  const Floats scale = Lanes::broadcast(1.0F / std::sqrt(mean + norm.epsilon));
  for (std::size_t at = 0; at < norm.count; at += kChunk) {
    const Floats normalised = Lanes::multiply(Lanes::load(x + at), scale);
    Lanes::store(out + at, Lanes::multiply(Lanes::load(norm.weight + at), normalised));
  }
}
