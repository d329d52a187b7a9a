// One token times a matrix of nibbles, as fast as the matrix can be read: y = x times the
// transpose.
//
// One block of threads stays on each processor. One of its warps, the producer, has weights copied
// through tensor maps into a ring of stages in shared memory. It waits for nothing but room: in a
// chain, for as many stages as there are weights are on their way before x is there. The other
// warps make x what is multiplied, in fixed point, each block for itself, and multiply.
//
// A tile is sixteen rows of the matrix; a block has every so many. How x is put in fixed point and
// multiplied by nibbles on the integer matrix units: see planar_fixed.py and fixed_columns.py
// beside this file. What is rounded is rounded where the plain formulation does.
//
// Compiled for one shape: ROWS, COLUMNS, STAGES, NORMED (x, or x + added, is normalised), GATED
// (rows are gates, and then what they are for: half of ROWS come out), BIASED, SCALE_BF16 (else
// float16) and what numbers are. COLUMNS are whole 256, ROWS whole 16.

#include "token_numbers.cuh"

constexpr int WARPS = 16, CONSUMERS = WARPS * WARP, THREADS = CONSUMERS + WARP;
constexpr int GROUP = 32, GROUP_BYTES = 16, SCALE_BYTES = 2, TILE = 16, STEP_GROUPS = 4;
constexpr int STAGE_GROUPS = 64, TEAM = 4, TEAMS = WARPS / TEAM;
constexpr int STEPS = STAGE_GROUPS / STEP_GROUPS / TEAM;  // Of a warp, in a stage.
// A stage is always the same team's, or a team might take for its own turn what another's left
// there.
static_assert(STAGES % TEAMS == 0, "each team has stages of its own");
constexpr int AHEAD = 3;  // Stages whose copies are under way: enough for the memory's full rate.
static_assert(AHEAD < STAGES, "a copy is waited for before its stage is needed again");
// A stage has sixteen rows of so many groups: words in lines of 128 bytes, (8, TILE, 128), and
// scales, (TILE, 128). Copies swizzle lines: the eight pieces of 16 bytes of row r change places, p
// with p ^ r.
constexpr int LINE = 128, LOW_BYTES = STAGE_GROUPS * GROUP_BYTES * TILE;
constexpr int STAGE_BYTES = LOW_BYTES + LINE * TILE;
static_assert(STAGE_GROUPS * SCALE_BYTES == LINE, "the scales of a row are one line");
constexpr int RECORD = 20;  // Words: eight of high parts, eight of low ones, begin, scale.
// Word 4 * b + m of eight has columns 8 * t + 4 * b + m, t from the lowest byte on.
constexpr int HALVES = GATED ? 2 : 1, OUT = ROWS / HALVES, UNITS = OUT / TILE;
constexpr int GROUPS = COLUMNS / GROUP, PARTS = (GROUPS + STAGE_GROUPS - 1) / STAGE_GROUPS;
constexpr int RECORD_BYTES = (GROUPS * RECORD * 4 + 127) / 128 * 128;
constexpr int VECTORS = COLUMNS / 8, OWN = (VECTORS + CONSUMERS - 1) / CONSUMERS;
constexpr float MIDDLE = 12582912.0f, LARGEST = 16383.0f, SMALLEST = 1e-30f;
constexpr int MIDDLE_BITS = 0x4B400000;
constexpr u32 FINITE = 0x7F7FFFFF, NOT_A_NUMBER = 0x7FC00000, NIBBLES = 0x0F0F0F0F;

struct __align__(64) Map {  // What a copy has to know of a plane.
  u64 words[16];
};

struct Product {
  const Map* maps;     // Of the words, and of the scales.
  const u16* x;        // (COLUMNS,)
  const u16* added;    // What is to be added to x, or null.
  const Number* norm;  // (COLUMNS,)
  u16* total;          // x + added; none where nothing is added.
  const Number* bias;  // (OUT,)
  u16* out;            // (OUT,)
  float epsilon;
};

__device__ __forceinline__ float widen_scale(u16 bits) {
  return SCALE_BF16 ? widen_bf16(bits) : widen_half(bits);
}

// ---- memory

__device__ __forceinline__ void begin_barrier(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_expecting(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra AGAIN;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void copy_words(u32 to, const Map& from, int row, int group, u32 barrier,
                                           u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(&from), "r"(0), "r"(row), "r"(group * GROUP_BYTES / LINE), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void copy_scales(u32 to, const Map& from, int row, int group,
                                            u32 barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&from), "r"(group), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}
// What was another map may be kept by the units that copy.
__device__ __forceinline__ void acquire(const Map& map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(&map) : "memory");
}
__device__ __forceinline__ void meet() {  // The warps that multiply.
  asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}
__device__ __forceinline__ uint4 load_words(u32 at) {
  uint4 found;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
               : "r"(at)
               : "memory");
  return found;
}
__device__ __forceinline__ u16 load_short(u32 at) {
  u16 found;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(found) : "r"(at) : "memory");
  return found;
}

// ---- the ring

// Tiles of this block: the first, and every `gridDim.x`-th from there.
__device__ __forceinline__ int count_units() {
  const int first = blockIdx.x, apart = gridDim.x;
  return first < UNITS ? (UNITS - first + apart - 1) / apart : 0;
}

// One thread's work.
__device__ void bring(const Product& product, u32 stages, u32 full, u32 empty) {
  u64 policy;
  const Map &low = product.maps[0], &scales = product.maps[1];
  acquire(low);
  acquire(scales);
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  int stage = 0, count = 0;
  u32 parity = 0;
  for (int unit = blockIdx.x; unit < UNITS; unit += gridDim.x) {
    for (int half = 0; half < HALVES; ++half) {
      const int row = unit * TILE + half * OUT;
      for (int group = 0; group < GROUPS; group += STAGE_GROUPS) {
        const u32 barrier = full + stage * 8, to = stages + stage * STAGE_BYTES;
        wait(empty + stage * 8, parity ^ 1);
        if (count++ >= AHEAD) {  // More would be in the way of what others read: x, above all.
          const bool is_before = stage < AHEAD;
          const int last = is_before ? stage - AHEAD + STAGES : stage - AHEAD;
          wait(full + last * 8, is_before ? parity ^ 1 : parity);
        }
        arrive_expecting(barrier, STAGE_BYTES);  // Zeros after the last column, too.
        copy_words(to, low, row, group, barrier, policy);
        copy_scales(to + LOW_BYTES, scales, row, group, barrier, policy);
        if (++stage == STAGES) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  }
}

__device__ __forceinline__ void multiply_word(int (&sums)[4], u32 above, u32 below, u32 b0,
                                              u32 b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(above & NIBBLES), "r"(below & NIBBLES), "r"(above >> 4 & NIBBLES),
        "r"(below >> 4 & NIBBLES), "r"(b0), "r"(b1));
}

// Multiply this block's tiles by x: `partial` gets (tiles, parts, TEAM, TILE), where parts are the
// stages of a tile. Teams of warps take turns at stages: while one waits for its sums, the others
// have theirs under way.
__device__ __forceinline__ void multiply(const u8* records, float* partial, u32 stages, u32 full,
                                         u32 empty) {
  const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
  const int team = threadIdx.x / WARP / TEAM, member = threadIdx.x / WARP % TEAM;
  const int row = g / 2 + g % 2 * 4;  // Neighbours meet all banks.
  const bool has_columns = g / 2 == q;
  const int all = count_units() * HALVES * PARTS;
  int stage = team;
  u32 parity = 0;
  for (int index = team; index < all; index += TEAMS) {
    const int first = index % PARTS * STAGE_GROUPS;
    uint4 above[STEPS], below[STEPS];
    u16 scale_above[STEPS], scale_below[STEPS];
    wait(full + stage * 8, parity);
    const u32 lines = stages + stage * STAGE_BYTES + row * LINE;
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int own = (member * STEPS + i) * STEP_GROUPS + q;
      const u32 low = lines + own / 8 * (TILE * LINE) + (own % 8 ^ row) * 16;
      const u32 scale = lines + LOW_BYTES + (own / 8 ^ row) * 16 + own % 8 * SCALE_BYTES;
      above[i] = load_words(low);
      below[i] = load_words(low + 8 * LINE);
      scale_above[i] = load_short(scale);
      scale_below[i] = load_short(scale + 8 * LINE);
    }
    __syncwarp();
    if (lane == 0) arrive(empty + stage * 8);
    stage += TEAMS;
    if (stage >= STAGES) {
      stage -= STAGES;
      parity ^= 1;
    }
    float upper = 0.0f, lower = 0.0f;
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int group = first + (member * STEPS + i) * STEP_GROUPS;
      if (GROUPS % STAGE_GROUPS && group >= GROUPS) break;
      const u8* record = records + (group + q) * (RECORD * 4);
      uint4 x = {0, 0, 0, 0}, y = {0, 0, 0, 0};
      if (has_columns) {
        x = *(const uint4*)(record + g % 2 * 32);
        y = *(const uint4*)(record + g % 2 * 32 + 16);
      }
      const uint2 facts = *(const uint2*)(record + 64);
      int sums[4] = {0, (int)facts.x, 0, (int)facts.x}, more[4] = {0, 0, 0, 0};
      multiply_word(sums, above[i].x, below[i].x, x.x, y.x);
      multiply_word(more, above[i].y, below[i].y, x.y, y.y);
      multiply_word(sums, above[i].z, below[i].z, x.z, y.z);
      multiply_word(more, above[i].w, below[i].w, x.w, y.w);
      const float size = __uint_as_float(facts.y);
      const int a = (sums[0] + more[0]) * 256 + (sums[1] + more[1]);
      const int b = (sums[2] + more[2]) * 256 + (sums[3] + more[3]);
      upper += (__int_as_float(a) - MIDDLE) * (widen_scale(scale_above[i]) * size);
      lower += (__int_as_float(b) - MIDDLE) * (widen_scale(scale_below[i]) * size);
    }
#pragma unroll
    for (int apart = 1; apart < 4; apart *= 2) {
      upper += __shfl_xor_sync(~0u, upper, apart);
      lower += __shfl_xor_sync(~0u, lower, apart);
    }
    if (q == 0) {
      partial[(index * TEAM + member) * TILE + row] = upper;
      partial[(index * TEAM + member) * TILE + 8 + row] = lower;
    }
  }
}

// Return silu(gate) * up.
__device__ __forceinline__ float open(float gate, float up) {
  gate = rounded(gate);
  return rounded(__fdividef(gate, 1.0f + __expf(-gate))) * rounded(up);
}

// Add up what warps have of this block's tiles, four lanes a row, and write pairs of rows.
__device__ __forceinline__ void finish(const Product& product, const float* partial) {
  static_assert(TEAM == 4, "each of four lanes adds up what one of a team has");
  const int all = count_units() * TILE, lane = threadIdx.x % WARP;
  for (int i = threadIdx.x / 4; i < all; i += CONSUMERS / 4) {  // Whole warps.
    const int unit = i / TILE, line = i % TILE;
    const int row = (blockIdx.x + unit * gridDim.x) * TILE + line;
    float own[HALVES];
#pragma unroll
    for (int half = 0; half < HALVES; ++half) {
      const float* from =
          partial + ((unit * HALVES + half) * PARTS * TEAM + lane % TEAM) * TILE + line;
      own[half] = 0.0f;
#pragma unroll
      for (int k = 0; k < PARTS; ++k) own[half] += from[k * TEAM * TILE];
      own[half] += __shfl_xor_sync(~0u, own[half], 1);
      own[half] += __shfl_xor_sync(~0u, own[half], 2);
    }
    float found = own[0];
    if (GATED) found = open(own[0], own[HALVES - 1]);
    if (BIASED) found = rounded(found) + rounded(widen_number(product.bias[row]));
    const float next = __shfl_xor_sync(~0u, found, 4);
    if (lane % 8 == 0) ((u32*)product.out)[row / 2] = pair_of(found, next);
  }
}

// ---- x

// Give four lanes' words to each other: word i of lane p for word p of lane i.
__device__ __forceinline__ void exchange(u32 (&words)[4]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  const u32 a = __shfl_xor_sync(~0u, odd ? words[0] : words[1], 1);
  const u32 b = __shfl_xor_sync(~0u, odd ? words[2] : words[3], 1);
  words[0] = odd ? a : words[0];
  words[1] = odd ? words[1] : a;
  words[2] = odd ? b : words[2];
  words[3] = odd ? words[3] : b;
  const u32 c = __shfl_xor_sync(~0u, upper ? words[0] : words[2], 2);
  const u32 d = __shfl_xor_sync(~0u, upper ? words[1] : words[3], 2);
  words[0] = upper ? c : words[0];
  words[1] = upper ? d : words[1];
  words[2] = upper ? words[2] : c;
  words[3] = upper ? words[3] : d;
}

// Put eight neighbouring columns, four pairs of them, in fixed point; four lanes have a group.
__device__ __forceinline__ void fix(u8* records, u32 (&pairs)[4], int vector) {
  exchange(pairs);  // Now of each quarter of the group a pair, the lane's.
  float values[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = low_of(pairs[i]);
    values[2 * i + 1] = high_of(pairs[i]);
  }
  float most = fabsf(values[0]);
#pragma unroll
  for (int i = 1; i < 8; ++i) most = fmaxf(most, fabsf(values[i]));
  u32 odd = 0;  // Numbers that are none: a maximum does not keep them.
#pragma unroll
  for (int i = 0; i < 8; ++i) odd |= values[i] != values[i];
  u32 size = odd ? NOT_A_NUMBER : __float_as_uint(most);
  size = max(size, __shfl_xor_sync(~0u, size, 1));
  size = max(size, __shfl_xor_sync(~0u, size, 2));
  const float bounded = fmaxf(__uint_as_float(min(size, FINITE)), SMALLEST);
  const float steps = __fdividef(LARGEST, bounded);
  u32 bits[8], total = 0;  // An integer is added to the bits of a float by adding it to the float.
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    bits[i] = __float_as_uint(fmaf(values[i], steps, MIDDLE));
    total += bits[i];
  }
  u32 low[2], high[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {  // Columns 2 * t + k are byte t.
    low[k] = __byte_perm(__byte_perm(bits[k], bits[2 + k], 0x40),
                         __byte_perm(bits[4 + k], bits[6 + k], 0x40), 0x5410);
    high[k] = __byte_perm(__byte_perm(bits[k] + 128, bits[2 + k] + 128, 0x51),
                          __byte_perm(bits[4 + k] + 128, bits[6 + k] + 128, 0x51), 0x5410);
  }
  total += __shfl_xor_sync(~0u, total, 1);
  total += __shfl_xor_sync(~0u, total, 2);
  u32* record = (u32*)(records + vector / 4 * (RECORD * 4));
  const int part = vector % 4;
  *(uint2*)(record + 2 * part) = {high[0], high[1]};
  *(uint2*)(record + 8 + 2 * part) = {low[0], low[1]};
  if (part == 0) record[16] = (total - GROUP * (u32)MIDDLE_BITS) * -8u + MIDDLE_BITS;
  if (part == 1)
    record[17] = size <= FINITE ? __float_as_uint(bounded * (1.0f / LARGEST)) : NOT_A_NUMBER;
}

__device__ __forceinline__ void read_eight(float (&found)[8], const Number* from) {
  if constexpr (NORM_KIND == 0) {
    const float4 a = ((const float4*)from)[0], b = ((const float4*)from)[1];
    const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) found[i] = all[i];
  } else {
    const uint4 all = *(const uint4*)from;
    const u32 words[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      found[2 * i] = widen_number((Number)(words[i] & 0xFFFF));
      found[2 * i + 1] = widen_number((Number)(words[i] >> 16));
    }
  }
}

__device__ __forceinline__ uint4 read_pairs(const u16* from) {
  return __ldcg((const uint4*)from);
}

// Put x in fixed point as it is. All is asked for before any of it is waited for.
__device__ __forceinline__ void prepare_plain(const Product& product, u8* records) {
  uint4 asked[OWN];
  follow();
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int vector = min((int)threadIdx.x + i * CONSUMERS, VECTORS - 1);
    asked[i] = read_pairs(product.x + 8 * vector);
  }
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int vector = threadIdx.x + i * CONSUMERS;
    if (vector / WARP * WARP >= VECTORS) continue;  // Whole warps: VECTORS are whole 32.
    u32 pairs[4] = {asked[i].x, asked[i].y, asked[i].z, asked[i].w};
    fix(records, pairs, vector);
  }
}

// Put x, or x + added, in fixed point, normalised; the first block writes the sum.
__device__ __forceinline__ void prepare_normed(const Product& product, u8* records) {
  __shared__ float squares[WARPS];
  float weights[OWN][8];
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int vector = min((int)threadIdx.x + i * CONSUMERS, VECTORS - 1);
    read_eight(weights[i], product.norm + 8 * vector);  // No kernel writes weights.
  }
  follow();
  uint4 asked[OWN], more[OWN];
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int vector = min((int)threadIdx.x + i * CONSUMERS, VECTORS - 1);
    asked[i] = read_pairs(product.x + 8 * vector);
    more[i] = {0, 0, 0, 0};
    if (product.added) more[i] = read_pairs(product.added + 8 * vector);
  }
  float values[OWN][8], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int vector = threadIdx.x + i * CONSUMERS;
    u32 pairs[4] = {asked[i].x, asked[i].y, asked[i].z, asked[i].w};
    const u32 others[4] = {more[i].x, more[i].y, more[i].z, more[i].w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (product.added)
        pairs[k] =
            pair_of(low_of(pairs[k]) + low_of(others[k]), high_of(pairs[k]) + high_of(others[k]));
      values[i][2 * k] = low_of(pairs[k]);
      values[i][2 * k + 1] = high_of(pairs[k]);
    }
    if (vector >= VECTORS) continue;
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += values[i][k] * values[i][k];
    if (blockIdx.x == 0 && product.added)
      *(uint4*)(product.total + 8 * vector) = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
#pragma unroll
  for (int apart = 16; apart; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
  if (threadIdx.x % WARP == 0) squares[threadIdx.x / WARP] = sum;
  meet();
  sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) sum += squares[warp];
  const float by = rsqrtf(sum / COLUMNS + product.epsilon);
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    const int vector = threadIdx.x + i * CONSUMERS;
    if (vector / WARP * WARP >= VECTORS) continue;
    u32 pairs[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      pairs[k] = pair_of(rounded(values[i][2 * k] * by) * weights[i][2 * k],
                         rounded(values[i][2 * k + 1] * by) * weights[i][2 * k + 1]);
    fix(records, pairs, vector);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    token_product(const __grid_constant__ Product product) {
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  u8* records = memory + STAGES * STAGE_BYTES;
  float* partial = (float*)(records + RECORD_BYTES);
  const u32 stages = shared(memory), full = shared(barriers), empty = full + STAGES * 8;
  if (threadIdx.x == CONSUMERS) {
    for (int i = 0; i < STAGES; ++i) {
      begin_barrier(full + i * 8, 1);
      begin_barrier(empty + i * 8, TEAM);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  let_next_begin();
  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x == CONSUMERS) bring(product, stages, full, empty);
    return;
  }
  if constexpr (NORMED)
    prepare_normed(product, records);
  else
    prepare_plain(product, records);
  meet();
  multiply(records, partial, stages, full, empty);
  meet();
  finish(product, partial);
}
