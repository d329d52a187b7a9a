// Decodes coded segments: a thread block a segment, a warp a block of its symbols, a lane a state.
// docs/codec.md is the format; decoder.cpp does the same on the CPU, and is what this is held to.
// Asymmetric numeral systems, range variant (Duda 2013), with interleaved states (Giesen 2014).
//
// Sketch: a warp's iteration decodes 32 symbols, 64 bytes, in about 25 instructions; an SM issues
// four a cycle. Words go from memory to a ring in shared memory, in whole cache lines and one line
// ahead, so that no lane waits for memory inside of the loop. Only what fills the ring has to know
// where the words end: beyond them there are zeros. So the loop checks nothing, and yet never reads
// outside of its segment; whether what it decoded made sense shows in the last states.
//
// `make ptx` compiles this. Without a CUDA compiler it also compiles as C++, for tests.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

enum : u32 {
  kMagic = 0x31524C53,
  kSegmentBytes = 1 << 20,
  kHeaderBytes = 768,
  kFrequenciesAt = 8,
  kBlockEndsAt = kFrequenciesAt + 2 * 256,
  kScale = 4096,
  kLowerBound = 65536,
  kBlockSymbols = 16384,
  kGroupSymbols = 128,
  kStatesBytes = 128,

  kSegmentsPerLaunch = 160,
  kThreads = 512,
  kWarps = kThreads / 32,
  kRingWords = 256,
  kRefillWords = 64,  // what a warp loads at once, four bytes a lane
  kAllLanes = 0xFFFFFFFF,
};

struct Segment {
  const u8* stored;
  u8* raw;
  u32 stored_size;
  u32 raw_size;
};

struct Jobs {
  u32 count;
  Segment segments[kSegmentsPerLaunch];
};

// The words of one block on their way from memory to the lanes.
struct WordRing {
  u32* ring;          // kRingWords 16-bit words
  const u32* source;  // what to load next, by this lane
  u32 left;           // pairs of words from there to the end of the block
  u32 next;           // loaded already
  u32 filled;         // words that have been in the ring

  __device__ void load(u32 lane) {
    next = lane < left ? __ldg(source) : 0;
    source += kRefillWords / 2;
    left -= left < kRefillWords / 2 ? left : kRefillWords / 2;
  }

  // Until the ring holds more than the kGroupSymbols words from `position` on that a group can use.
  __device__ void refill(u32 position, u32 lane) {
    while (filled - position <= kRingWords - kRefillWords) {
      __syncwarp();  // every lane has read the words that are overwritten
      ring[(filled / 2 + lane) % (kRingWords / 2)] = next;
      __syncwarp();
      filled += kRefillWords;
      load(lane);
    }
  }
};

// Both 16-bit halves turned right by one.
static __device__ __forceinline__ u32 rotate_halves(u32 pair) {
  return (pair >> 1 & 0x7FFF7FFF) | (pair & 0x00010001) << 15;
}

static __device__ __forceinline__ void write_symbols(u8* raw, u32 count, u32 low, u32 high) {
  const u32 first = rotate_halves(__byte_perm(low, high, 0x5140));
  const u32 second = rotate_halves(__byte_perm(low, high, 0x7362));
  if (count >= 4) {
    *(uint2*)raw = make_uint2(first, second);
    return;
  }
  u16* words = (u16*)raw;
  if (count > 0) words[0] = (u16)first;
  if (count > 1) words[1] = (u16)(first >> 16);
  if (count > 2) words[2] = (u16)second;
}

// Returns whether the block was sound. `stream` has its states, and then `pairs` pairs of words.
static __device__ bool decode_block(const u32* table, u32* ring_memory, const u8* stream, u32 pairs,
                                    const u8* low_bytes, u8* raw, u32 symbols) {
  const u32 lane = threadIdx.x % 32;
  const u32 earlier_lanes = (1u << lane) - 1;
  u32 state = __ldg((const u32*)stream + lane);
  WordRing words = {ring_memory, (const u32*)(stream + kStatesBytes) + lane, pairs, 0, 0};
  words.load(lane);
  const u16* ring = (const u16*)ring_memory;
  u32 position = 0;
  const u32* low_source = (const u32*)low_bytes + lane;
  u32 next_low = __ldg(low_source);
  raw += 8 * lane;

  for (u32 first = 0; first < symbols; first += kGroupSymbols) {
    const u32 low = next_low;
    low_source += kGroupSymbols / 4;
    if (first + kGroupSymbols < symbols) next_low = __ldg(low_source);
    words.refill(position, lane);
    u32 high = 0;
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
      const u32 entry = table[state % kScale];
      state = (entry >> 20) * (state / kScale) + (entry >> 8) % kScale;
      const bool short_of_bits = state < kLowerBound;
      const u32 takers = __ballot_sync(kAllLanes, short_of_bits);
      const u32 word = ring[(position + __popc(takers & earlier_lanes)) % kRingWords];
      state = short_of_bits ? state << 16 | word : state;
      position += __popc(takers);
      high = __byte_perm(high, entry, 0x4321);
    }
    const u32 own = first + 4 * lane;
    write_symbols(raw + 2 * first, own < symbols ? symbols - own : 0, low, high);
  }
  const bool padded = position + 1 == 2 * pairs && ring[position % kRingWords] == 0;
  return __all_sync(kAllLanes, state == kLowerBound) && (position == 2 * pairs || padded);
}

// The table of a segment, from its frequencies. Returns whether they sum to kScale; if they do not,
// there is no table.
static __device__ bool fill_table(const u16* frequencies, u32* table) {
  __shared__ u32 spans[256];
  __shared__ u32 sums[8];
  const u32 thread = threadIdx.x;
  const u32 lane = thread % 32;
  u32 frequency = 0;
  u32 through = 0;
  if (thread < 256) {
    frequency = __ldg(frequencies + thread);
    if (frequency >= kScale) frequency = 2 * kScale;  // too much for any sum
    through = frequency;
    for (u32 distance = 1; distance < 32; distance *= 2) {
      const u32 before = __shfl_up_sync(kAllLanes, through, distance);
      if (lane >= distance) through += before;
    }
    if (lane == 31) sums[thread / 32] = through;
  }
  __syncthreads();
  u32 start = through - frequency;
  u32 total = 0;
  for (u32 warp = 0; warp < 8; ++warp) {
    if (warp < thread / 32) start += sums[warp];
    total += sums[warp];
  }
  if (total != kScale) return false;
  if (thread < 256) spans[thread] = start << 16 | frequency;
  __syncthreads();
  for (u32 symbol = thread / 32; symbol < 256; symbol += kWarps) {
    const u32 span = spans[symbol];
    const u32 count = span & 0xFFFF;
    for (u32 bias = lane; bias < count; bias += 32) {
      table[(span >> 16) + bias] = count << 20 | bias << 8 | symbol;
    }
  }
  __syncthreads();
  return true;
}

static __device__ bool decode_segment(const Segment& segment, u32* table, u32* rings) {
  const u8* stored = segment.stored;
  const u32 raw_size = segment.raw_size;
  const u32 symbols = raw_size / 2;
  const u32 low_size = (raw_size - symbols + kGroupSymbols - 1) / kGroupSymbols * kGroupSymbols;
  const u32 streams_at = kHeaderBytes + low_size;
  if (raw_size > kSegmentBytes || segment.stored_size < streams_at) return false;
  const u32* head = (const u32*)stored;
  if (__ldg(head) != kMagic || __ldg(head + 1) != raw_size) return false;
  if (!fill_table((const u16*)(stored + kFrequenciesAt), table)) return false;

  bool sound = true;
  const u32* ends = (const u32*)(stored + kBlockEndsAt);
  const u32 blocks = (symbols + kBlockSymbols - 1) / kBlockSymbols;
  const u32 warp = threadIdx.x / 32;
  for (u32 block = warp; block < blocks; block += kWarps) {
    const u32 begin = block == 0 ? streams_at : __ldg(ends + block - 1);
    const u32 end = __ldg(ends + block);
    const u32 first = block * kBlockSymbols;
    if (begin < streams_at || end > segment.stored_size || begin > end ||
        end - begin < kStatesBytes || (begin | end) % 4 != 0 ||
        (block + 1 == blocks && end != segment.stored_size)) {
      sound = false;
      continue;
    }
    const u32 count = symbols - first < kBlockSymbols ? symbols - first : kBlockSymbols;
    const u8* low_bytes = stored + kHeaderBytes + first;
    if (!decode_block(table, rings + warp * (kRingWords / 2), stored + begin,
                      (end - begin - kStatesBytes) / 4, low_bytes, segment.raw + 2 * first,
                      count)) {
      sound = false;
    }
  }
  if (raw_size % 2 != 0 && threadIdx.x == 0) {
    segment.raw[raw_size - 1] = __ldg(stored + kHeaderBytes + symbols);
  }
  return sound;
}

extern "C" __global__ void __launch_bounds__(kThreads, 3)
    sllm_decode_segments(const __grid_constant__ Jobs jobs, u32* errors) {
  __shared__ u32 table[kScale];
  __shared__ u32 rings[kWarps * (kRingWords / 2)];
  if (blockIdx.x >= jobs.count) return;
  if (!decode_segment(jobs.segments[blockIdx.x], table, rings)) *errors = 1;
}
