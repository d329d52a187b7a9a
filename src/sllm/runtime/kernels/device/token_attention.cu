// Attention of one token: heads normalised and rotated, put into the cache, and attended to, at
// once.
//
// A cluster of blocks has the query heads that share a head of keys and values. A warp attends to a
// page of sixteen tokens at a time, on the matrix units, and keeps what it has in registers; its
// first page is asked for before the token's own heads are there, since no kernel of the step
// writes what is before it. Warps are joined in a block's shared memory, blocks in the cluster's:
// each sends the others their slices of what it has. Shares of the softmax are rounded to x's
// numbers, as they are in paged_attention.py beside this file.
//
// The units multiply rows of x, in the heads' order, by columns of tokens. In which order
// dimensions are added is free, so lane 4 * g + q has neighbouring ones: of keys, of tokens g and g
// + 8 the dimensions 32 * c + 8 * q on, eight for each c; of values, of tokens 2 * q, 2 * q + 1, 2
// * q + 8 and 2 * q + 9 the dimensions 64 * c + 8 * g on.
//
// Compiled for HEADS, KV_HEADS, HEAD_DIM (64 or 128), CLUSTER (blocks of one), QK_NORM, INTERLEAVED
// and what numbers are.

#include "token_numbers.cuh"

constexpr int WARPS = 8, THREADS = WARPS * WARP, PAGE_TOKENS = 16;
constexpr int SHARING = HEADS / KV_HEADS, QUERIES = HEADS * HEAD_DIM, KEYS = KV_HEADS * HEAD_DIM;
constexpr int PIECES = HEAD_DIM / 32;  // Of eight dimensions, that a lane has of a key.
constexpr int VALUES = HEAD_DIM / 64;  // And of a value.
constexpr int SIZE = SHARING * HEAD_DIM, SLICE = SIZE / CLUSTER;
static_assert(SHARING <= 8, "heads are rows of half a unit");
static_assert(SIZE % CLUSTER == 0 && SLICE % 2 == 0, "slices are alike");
constexpr int PER_THREAD = (SIZE + THREADS - 1) / THREADS;

struct Attention {
  const u16* heads;  // (HEADS + 2 * KV_HEADS, HEAD_DIM): queries, keys and values.
  const Number *query_norm, *key_norm;
  const u16 *cos, *sin;  // (HEAD_DIM / 2,)
  u16 *keys, *values;    // (places, KV_HEADS, HEAD_DIM)
  u16* out;              // (HEADS * HEAD_DIM,)
  const int *places, *pages, *lengths;
  int window;            // Tokens that are seen; 0 for all.
  float scale, epsilon;  // scale is for powers of two.
};

__device__ __forceinline__ float power(float value) {
  float found;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(value));
  return found;
}
__device__ __forceinline__ float nothing() {
  return __uint_as_float(0xFF800000);
}  // -inf
// What something with this maximum is multiplied by beside a higher one.
__device__ __forceinline__ float fade_of(float highest, float higher) {
  return highest == nothing() ? 0.0f : power(highest - higher);
}

__device__ __forceinline__ void multiply(float (&sums)[4], u32 a0, u32 a2, u32 b0, u32 b1) {
  if (X_BF16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, "
        "{%7, %8}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, "
        "{%7, %8}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1));
}

// ---- heads

struct Piece {
  u32 pairs[4];

  __device__ __forceinline__ void load(const u16* from) {
    const uint4 found = __ldcg((const uint4*)from);
    pairs[0] = found.x, pairs[1] = found.y, pairs[2] = found.z, pairs[3] = found.w;
  }
  __device__ __forceinline__ void store(u16* to) const {
    *(uint4*)to = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
};

__device__ __forceinline__ float angle_at(const Piece& angles, int i) {
  return i % 2 ? high_of(angles.pairs[i / 2]) : low_of(angles.pairs[i / 2]);
}

// Cosines and sines of a lane's dimensions.
struct Angles {
  Piece cos[PIECES / 2], sin[PIECES / 2];

  __device__ __forceinline__ void load(const Attention& step, int q) {
#pragma unroll
    for (int i = 0; i < PIECES / 2; ++i) {
      if constexpr (INTERLEAVED) {  // Neighbours turn together: a piece has four angles.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = 16 * (2 * i + half) + 4 * q;
          const uint2 c = __ldcg((const uint2*)(step.cos + at));
          const uint2 s = __ldcg((const uint2*)(step.sin + at));
          cos[i].pairs[2 * half] = c.x, cos[i].pairs[2 * half + 1] = c.y;
          sin[i].pairs[2 * half] = s.x, sin[i].pairs[2 * half + 1] = s.y;
        }
      } else {
        cos[i].load(step.cos + 32 * i + 8 * q);
        sin[i].load(step.sin + 32 * i + 8 * q);
      }
    }
  }
};

// Normalise and rotate a head, of which four neighbouring lanes have PIECES each.
__device__ __forceinline__ void turn(Piece (&head)[PIECES], const Number* norm,
                                     const Angles& angles, int q, float epsilon) {
  if constexpr (QK_NORM) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < PIECES; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float low = low_of(head[c].pairs[k]), high = high_of(head[c].pairs[k]);
        sum += low * low + high * high;
      }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float by = rsqrtf(sum / HEAD_DIM + epsilon);
#pragma unroll
    for (int c = 0; c < PIECES; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Number* weight = norm + 32 * c + 8 * q + 2 * k;
        head[c].pairs[k] =
            pair_of(rounded(low_of(head[c].pairs[k]) * by) * widen_number(weight[0]),
                    rounded(high_of(head[c].pairs[k]) * by) * widen_number(weight[1]));
      }
  }
  if constexpr (INTERLEAVED) {
#pragma unroll
    for (int c = 0; c < PIECES; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int at = 4 * (c % 2) + k;
        const float cosine = angle_at(angles.cos[c / 2], at),
                    sine = angle_at(angles.sin[c / 2], at);
        const float first = low_of(head[c].pairs[k]), second = high_of(head[c].pairs[k]);
        head[c].pairs[k] = pair_of(first * cosine - second * sine, second * cosine + first * sine);
      }
  } else {
#pragma unroll
    for (int c = 0; c < PIECES / 2; ++c)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const u32 first = head[c].pairs[k], second = head[c + PIECES / 2].pairs[k];
        float turned[2][2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float a = i ? high_of(first) : low_of(first);
          const float b = i ? high_of(second) : low_of(second);
          const float cosine = angle_at(angles.cos[c], 2 * k + i);
          const float sine = angle_at(angles.sin[c], 2 * k + i);
          turned[0][i] = a * cosine - b * sine;
          turned[1][i] = b * cosine + a * sine;
        }
        head[c].pairs[k] = pair_of(turned[0][0], turned[0][1]);
        head[c + PIECES / 2].pairs[k] = pair_of(turned[1][0], turned[1][1]);
      }
  }
}

// ---- pages

// Which pages this warp has: `first`, and every `apart`-th. `newest` is the token's own place in
// its sequence; of the page that has it all before it was there, and all after it is nobody's.
struct Turns {
  int first, apart, last, oldest, newest;

  __device__ __forceinline__ Turns(const Attention& step, int rank) {
    const int length = step.lengths[0], warp = threadIdx.x / WARP;
    newest = length - 1;
    oldest = step.window ? max(length - step.window, 0) : 0;
    first = oldest / PAGE_TOKENS + warp * CLUSTER + rank;
    apart = CLUSTER * WARPS;
    last = newest / PAGE_TOKENS;
  }
};

struct Page {
  Piece keys[2][PIECES], values[4][VALUES];

  __device__ __forceinline__ static const u16* row(const u16* from, int page, int token) {
    return from + ((long long)page * PAGE_TOKENS + token) * KEYS + blockIdx.y * HEAD_DIM;
  }
  __device__ __forceinline__ void ask_keys(const Attention& step, int page) {
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int c = 0; c < PIECES; ++c)
        keys[i][c].load(row(step.keys, page, g + 8 * i) + 32 * c + 8 * q);
  }
  __device__ __forceinline__ void ask_values(const Attention& step, int page) {
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int c = 0; c < VALUES; ++c)
        values[i][c].load(row(step.values, page, 2 * q + i % 2 + 8 * (i / 2)) + 64 * c + 8 * g);
  }
};

// What a warp has attended to: rows are heads.
struct Attended {
  float highest = nothing(), total = 0.0f;  // Of head g; total is of this lane's tokens alone.
  float sums[8 * VALUES][2] = {};  // Column n of the unit's is dimension 64 * c + 8 * n + k.
};

__device__ __forceinline__ void score(float (&found)[4], const Attention& step, const Turns& turns,
                                      const Piece (&query)[PIECES], const Page& page, int first) {
  const int q = threadIdx.x % 4;
  float tiles[2][4] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int c = 0; c < PIECES; ++c)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        multiply(tiles[i], query[c].pairs[2 * k], query[c].pairs[2 * k + 1],
                 page.keys[i][c].pairs[2 * k], page.keys[i][c].pairs[2 * k + 1]);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = first + 2 * q + i % 2 + 8 * (i / 2);
    const bool is_seen = token >= turns.oldest && token <= turns.newest;
    found[i] = is_seen ? tiles[i / 2][i % 2] * step.scale : nothing();
  }
}

__device__ __forceinline__ void weigh(Attended& attended, const float (&scores)[4],
                                      u32 (&shares)[2]) {
  float higher = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
  higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 1));
  higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 2));
  higher = fmaxf(higher, attended.highest);
  const float fade = fade_of(attended.highest, higher);
  float parts[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) parts[i] = fade_of(scores[i], higher);
  attended.highest = higher;
  attended.total = attended.total * fade + (parts[0] + parts[1]) + (parts[2] + parts[3]);
#pragma unroll
  for (int i = 0; i < 8 * VALUES; ++i) attended.sums[i][0] *= fade, attended.sums[i][1] *= fade;
  shares[0] = pair_of(parts[0], parts[1]);
  shares[1] = pair_of(parts[2], parts[3]);
}

__device__ __forceinline__ void mix(Attended& attended, const u32 (&shares)[2], const Page& page) {
#pragma unroll
  for (int c = 0; c < VALUES; ++c)
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const u32 order = k % 2 ? 0x7632 : 0x5410;
      const u32 near =
          __byte_perm(page.values[0][c].pairs[k / 2], page.values[1][c].pairs[k / 2], order);
      const u32 far =
          __byte_perm(page.values[2][c].pairs[k / 2], page.values[3][c].pairs[k / 2], order);
      float (&own)[2] = attended.sums[8 * c + k];
      float sums[4] = {own[0], own[1], 0.0f, 0.0f};
      multiply(sums, shares[0], shares[1], near, far);
      own[0] = sums[0], own[1] = sums[1];
    }
}

// The token's own key and value, where its page is: kept, and written into the cache.
__device__ __forceinline__ void put_newest(const Attention& step, Page& page,
                                           const Piece (&key)[PIECES], const Piece (&value)[VALUES],
                                           int token) {
  const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, place = step.places[0];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (g + 8 * i == token)
#pragma unroll
      for (int c = 0; c < PIECES; ++c) page.keys[i][c] = key[c];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int own = 2 * q + i % 2 + 8 * (i / 2);
#pragma unroll
    for (int c = 0; c < VALUES; ++c) {
      if (own == token) page.values[i][c] = value[c];
      // What is after it was never written, and zero times what is no number is none.
      if (own > token) page.values[i][c] = {{0, 0, 0, 0}};
    }
  }
  if (place < 0) return;
  const long long at = ((long long)place * KV_HEADS + blockIdx.y) * HEAD_DIM;
  if (g == 0)
#pragma unroll
    for (int c = 0; c < PIECES; ++c) key[c].store(step.keys + at + 32 * c + 8 * q);
  if (q == 0)
#pragma unroll
    for (int c = 0; c < VALUES; ++c) value[c].store(step.values + at + 64 * c + 8 * g);
}

// ---- joining

struct Facts {
  float highest, total;
};

struct Shared {
  float sums[WARPS][SIZE];
  Facts facts[WARPS][SHARING];
  float parts[CLUSTER][SLICE];  // What each block of the cluster has of this one's slice.
  Facts of_parts[CLUSTER][SHARING];
};

__device__ __forceinline__ u32 address_in(const void* own, int rank) {
  u32 found;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(shared(own)), "r"(rank));
  return found;
}
__device__ __forceinline__ void send(u32 to, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}
__device__ __forceinline__ void send(u32 to, Facts value) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(value.highest),
               "f"(value.total)
               : "memory");
}

// Join the warps of this block, and send each block of the cluster its slice.
__device__ __forceinline__ void send_slices(Shared& memory, Attended& attended, int rank) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
  attended.total += __shfl_xor_sync(~0u, attended.total, 1);
  attended.total += __shfl_xor_sync(~0u, attended.total, 2);
  if (g < SHARING) {
    if (q == 0) memory.facts[warp][g] = {attended.highest, attended.total};
#pragma unroll
    for (int c = 0; c < VALUES; ++c)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int k = 0; k < 8; k += 4)
          *(float4*)(memory.sums[warp] + g * HEAD_DIM + 64 * c + 8 * (2 * q + i) + k) = {
              attended.sums[8 * c + k][i], attended.sums[8 * c + k + 1][i],
              attended.sums[8 * c + k + 2][i], attended.sums[8 * c + k + 3][i]};
  }
  __syncthreads();
  float mixed[PER_THREAD];
  Facts joined[PER_THREAD];
#pragma unroll
  for (int n = 0; n < PER_THREAD; ++n) {
    const int i = threadIdx.x + n * THREADS, head = min(i, SIZE - 1) / HEAD_DIM;
    float highest = nothing(), total = 0.0f, sum = 0.0f;
#pragma unroll
    for (int k = 0; k < WARPS; ++k) highest = fmaxf(highest, memory.facts[k][head].highest);
#pragma unroll
    for (int k = 0; k < WARPS; ++k) {
      const float fade = fade_of(memory.facts[k][head].highest, highest);
      total += fade * memory.facts[k][head].total;
      sum += fade * memory.sums[k][min(i, SIZE - 1)];
    }
    mixed[n] = sum;
    joined[n] = {highest, total};
  }
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");  // All blocks are there.
#pragma unroll
  for (int n = 0; n < PER_THREAD; ++n) {
    const int i = threadIdx.x + n * THREADS;
    if (i >= SIZE) continue;
    send(address_in(&memory.parts[rank][i % SLICE], i / SLICE), mixed[n]);
    if (i % HEAD_DIM < CLUSTER)
      send(address_in(&memory.of_parts[rank][i / HEAD_DIM], i % HEAD_DIM), joined[n]);
  }
}

// Join what blocks have of this one's slice, and write it.
__device__ __forceinline__ void write_slice(const Shared& memory, u16* out, int rank) {
  for (int i = 2 * threadIdx.x; i < SLICE; i += 2 * THREADS) {
    const int at = rank * SLICE + i, head = at / HEAD_DIM;
    float highest = nothing(), total = 0.0f, first = 0.0f, second = 0.0f;
#pragma unroll
    for (int k = 0; k < CLUSTER; ++k) highest = fmaxf(highest, memory.of_parts[k][head].highest);
#pragma unroll
    for (int k = 0; k < CLUSTER; ++k) {
      const float fade = fade_of(memory.of_parts[k][head].highest, highest);
      total += fade * memory.of_parts[k][head].total;
      first += fade * memory.parts[k][i];
      second += fade * memory.parts[k][i + 1];
    }
    *(u32*)(out + blockIdx.y * SIZE + at) = pair_of(first / total, second / total);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) token_attention(const Attention step) {
  __shared__ __align__(16) Shared memory;
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  let_next_begin();
  const int rank = blockIdx.x, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
  const Turns turns(step, rank);
  Page page;
  int own = turns.first <= turns.last ? step.pages[turns.first] : 0;
  if (turns.first <= turns.last) {
    page.ask_keys(step, own);
    page.ask_values(step, own);
  }
  follow();
  Angles angles;
  angles.load(step, q);
  Piece query[PIECES], key[PIECES], value[VALUES];
  const int head = blockIdx.y * SHARING + min(g, SHARING - 1);
  const bool has_newest =
      turns.first <= turns.last && (turns.last - turns.first) % turns.apart == 0;
#pragma unroll
  for (int c = 0; c < PIECES; ++c) query[c].load(step.heads + head * HEAD_DIM + 32 * c + 8 * q);
  if (has_newest) {
    const u16* from = step.heads + QUERIES + blockIdx.y * HEAD_DIM;
#pragma unroll
    for (int c = 0; c < PIECES; ++c) key[c].load(from + 32 * c + 8 * q);
#pragma unroll
    for (int c = 0; c < VALUES; ++c) value[c].load(from + KEYS + 64 * c + 8 * g);
  }
  turn(query, step.query_norm, angles, q, step.epsilon);
  if (has_newest) turn(key, step.key_norm, angles, q, step.epsilon);
  Attended attended;
  for (int turn = turns.first; turn <= turns.last; turn += turns.apart) {
    const int next = turn + turns.apart <= turns.last ? step.pages[turn + turns.apart] : -1;
    if (turn == turns.last) put_newest(step, page, key, value, turns.newest % PAGE_TOKENS);
    float scores[4];
    u32 shares[2];
    score(scores, step, turns, query, page, turn * PAGE_TOKENS);
    if (next >= 0) page.ask_keys(step, next);
    weigh(attended, scores, shares);
    mix(attended, shares, page);
    if (next >= 0) page.ask_values(step, next);
  }
  send_slices(memory, attended, rank);
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  write_slice(memory, step.out, rank);
}
