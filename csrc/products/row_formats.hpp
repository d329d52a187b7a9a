// How each format's blocks become numbers, over `Lanes`: sixteen numbers at a time, in order of the
// columns. Included, once for each set of instructions, where these are switched on; so it includes
// nothing, and all of it is local to the file that does.
//
// A block's numbers are handed to `use`, as (chunk of the block, sixteen numbers). GGUF's equal the
// gguf package's: a product of scale and weight has at most 24 bits, so that
// multiplying and adding at once rounds as often as one after the other.

using Floats = Lanes::Floats;

struct BlockQ4_0 {
  static std::size_t weights(const RowMatrix&) { return 32; }
  static std::size_t bytes(const RowMatrix&) { return 18; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
    const float scale = Lanes::half(block);
    const auto numbers = Lanes::scaled(scale, -8 * scale);
    const auto nibbles = Lanes::bytes(block + 2);
    use(0, Lanes::pick(numbers, nibbles));
    use(1, Lanes::pick(numbers, Lanes::shift_right<4>(nibbles)));
  }
};

struct BlockQ4_1 {
  static std::size_t weights(const RowMatrix&) { return 32; }
  static std::size_t bytes(const RowMatrix&) { return 20; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
    const HalfPair of = Lanes::half_pair(block);
    const auto numbers = Lanes::scaled(of.first, of.second);
    const auto nibbles = Lanes::bytes(block + 4);
    use(0, Lanes::pick(numbers, nibbles));
    use(1, Lanes::pick(numbers, Lanes::shift_right<4>(nibbles)));
  }
};

// Nibbles, and four bytes of fifth bits before them: bit c is that of column c.
SLLM_INLINE Floats five_bits(const std::uint8_t* nibbles, std::size_t chunk, Floats scale,
                             Floats offset) {
  const auto packed = Lanes::bytes(nibbles);
  const auto low = chunk == 0 ? packed : Lanes::shift_right<4>(packed);
  const auto high = Lanes::ordered_bits(nibbles - 4 + 2 * chunk);
  const auto weights = Lanes::join(Lanes::mask(low, 15), Lanes::mask(high, 1));
  return Lanes::multiply_add(scale, Lanes::to_floats(weights), offset);
}

struct BlockQ5_0 {
  static std::size_t weights(const RowMatrix&) { return 32; }
  static std::size_t bytes(const RowMatrix&) { return 22; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
    const float scale = Lanes::half(block);
    const Floats scales = Lanes::broadcast(scale);
    const Floats offsets = Lanes::broadcast(-16 * scale);
    use(0, five_bits(block + 6, 0, scales, offsets));
    use(1, five_bits(block + 6, 1, scales, offsets));
  }
};

struct BlockQ5_1 {
  static std::size_t weights(const RowMatrix&) { return 32; }
  static std::size_t bytes(const RowMatrix&) { return 24; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
    const Floats scales = Lanes::broadcast(Lanes::half(block));
    const Floats offsets = Lanes::broadcast(Lanes::half(block + 2));
    use(0, five_bits(block + 8, 0, scales, offsets));
    use(1, five_bits(block + 8, 1, scales, offsets));
  }
};

struct BlockQ8_0 {
  static std::size_t weights(const RowMatrix&) { return 32; }
  static std::size_t bytes(const RowMatrix&) { return 34; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
    const Floats scale = Lanes::broadcast(Lanes::half(block));
    for (std::size_t i = 0; i < 2; ++i) {
      const Floats weights = Lanes::to_floats(Lanes::signed_bytes(block + 2 + 16 * i));
      use(i, Lanes::multiply(scale, weights));
    }
  }
};

// The scale and the minimum of a group of 32, of six bits each: the low six bits of a byte, or of
// the last four groups the low or high four, and the upper bits of those before.
struct GroupScale {
  float scale;
  float minimum;
};

SLLM_INLINE GroupScale group_scale(const std::uint8_t* block, std::size_t group) {
  const std::uint8_t* packed = block + 4;
  unsigned scale = packed[group] & 63U;
  unsigned minimum = packed[group + 4] & 63U;
  if (group >= 4) {
    scale = (packed[group + 4] & 15U) | (packed[group - 4] >> 6U) << 4U;
    minimum = packed[group + 4] >> 4U | (packed[group] >> 6U) << 4U;
  }
  return {Lanes::half(block) * static_cast<float>(scale),
          Lanes::half(block + 2) * static_cast<float>(minimum)};
}

struct BlockQ4_K {
  static std::size_t weights(const RowMatrix&) { return 256; }
  static std::size_t bytes(const RowMatrix&) { return 144; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
    for (std::size_t pair = 0; pair < 4; ++pair) {
      const std::uint8_t* packed = block + 16 + 32 * pair;
      const auto first = Lanes::bytes(packed);
      const auto second = Lanes::bytes(packed + 16);
      const GroupScale low = group_scale(block, 2 * pair);
      const auto low_numbers = Lanes::scaled(low.scale, -low.minimum);
      use(4 * pair, Lanes::pick(low_numbers, first));
      use(4 * pair + 1, Lanes::pick(low_numbers, second));
      const GroupScale high = group_scale(block, 2 * pair + 1);
      const auto high_numbers = Lanes::scaled(high.scale, -high.minimum);
      use(4 * pair + 2, Lanes::pick(high_numbers, Lanes::shift_right<4>(first)));
      use(4 * pair + 3, Lanes::pick(high_numbers, Lanes::shift_right<4>(second)));
    }
  }
};

struct BlockQ5_K {
  static std::size_t weights(const RowMatrix&) { return 256; }
  static std::size_t bytes(const RowMatrix&) { return 176; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
#pragma GCC unroll 8
    for (std::size_t group = 0; group < 8; ++group) {
      const GroupScale of = group_scale(block, group);
      const Floats scale = Lanes::broadcast(of.scale);
      const Floats offset = Lanes::broadcast(-of.minimum);
      for (std::size_t i = 0; i < 2; ++i) {
        const auto packed = Lanes::bytes(block + 48 + 32 * (group / 2) + 16 * i);
        const auto low = group % 2 == 0 ? packed : Lanes::shift_right<4>(packed);
        const auto bits = Lanes::shift_right_by(Lanes::bytes(block + 16 + 16 * i), group);
        const auto weights = Lanes::join(Lanes::mask(low, 15), Lanes::mask(bits, 1));
        use(2 * group + i, Lanes::multiply_add(scale, Lanes::to_floats(weights), offset));
      }
    }
  }
};

struct BlockQ6_K {
  static std::size_t weights(const RowMatrix&) { return 256; }
  static std::size_t bytes(const RowMatrix&) { return 210; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* block = matrix.data + index * bytes(matrix);
    const float whole = Lanes::half(block + 208);
#pragma GCC unroll 16
    for (std::size_t chunk = 0; chunk < 16; ++chunk) {
      const std::size_t half = chunk / 8;
      const std::size_t quarter = chunk / 2 % 4;
      const std::size_t place = 16 * (chunk % 2);
      const auto packed = Lanes::bytes(block + 64 * half + 32 * (quarter % 2) + place);
      const auto low = quarter < 2 ? packed : Lanes::shift_right<4>(packed);
      const auto pairs = Lanes::bytes(block + 128 + 32 * half + place);
      const auto high = Lanes::mask(Lanes::shift_right_by(pairs, 2 * quarter), 3);
      const auto weights = Lanes::to_floats(Lanes::join(Lanes::mask(low, 15), high));
      const float scale = whole * static_cast<float>(static_cast<std::int8_t>(block[192 + chunk]));
      // scale * n - 32 * scale, for which 24 bits suffice.
      use(chunk,
          Lanes::multiply_add(Lanes::broadcast(scale), weights, Lanes::broadcast(-32 * scale)));
    }
  }
};

template <ScaleType Type>
SLLM_INLINE float scale_at(const std::uint8_t* scales, std::size_t index) {
  if constexpr (Type == ScaleType::kFloat16) return Lanes::half(scales + 2 * index);
  if constexpr (Type == ScaleType::kFloat32) return load_number<float>(scales + 4 * index);
  return bfloat_to_float(load_number<std::uint16_t>(scales + 2 * index));
}

// Its blocks are its groups. The formula rounds twice here: a scale may have all bits of a float.
template <ScaleType Type>
struct GroupAffineQ4 {
  static std::size_t weights(const RowMatrix& matrix) { return matrix.group; }
  static std::size_t bytes(const RowMatrix& matrix) { return matrix.group / 2; }
  template <typename Use>
  static SLLM_INLINE void decode(const RowMatrix& matrix, std::size_t index, Use use) {
    const std::uint8_t* words = matrix.data + index * bytes(matrix);
    const auto numbers = Lanes::scaled_twice_rounded(scale_at<Type>(matrix.scales, index),
                                                     scale_at<Type>(matrix.biases, index));
    for (std::size_t chunk = 0; chunk < matrix.group / 16; ++chunk) {
      use(chunk, Lanes::pick_twice_rounded(numbers, Lanes::ordered_nibbles(words + 8 * chunk)));
    }
  }
};
