// What one warp does, in the kernels that give each warp a piece of a row: walk the drafts 32 at a
// time, sum a piece, choose the piece that the token is in, and find the token there.
//
// All 32 lanes call each of these together, and all of them get the result.
#pragma once

#include <cuda_runtime.h>

#include "specification.h"

namespace rsk {

constexpr uint32_t ALL_LANES = 0xFFFFFFFFu;

#if defined(__CUDACC__)
// A block's shared memory as one struct. The emulator has a version of its own, because there
// several blocks of a cluster are alive at once.
template <class Storage>
__device__ __forceinline__ Storage& shared_memory() {
  __shared__ Storage storage;
  return storage;
}
#endif

// The sum of x in [0, 2^54) over the warp.
__device__ __forceinline__ int64_t sum_over_warp(int64_t x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const uint32_t low = __reduce_add_sync(ALL_LANES, (uint32_t)x & ((1u << 27) - 1));
  const uint32_t high = __reduce_add_sync(ALL_LANES, (uint32_t)(x >> 27));  // does not overflow
  return low + ((int64_t)high << 27);
#else
  for (int32_t step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
#endif
}

// The sum of x over this lane and the ones below it; from lane COUNT on, x is 0.
template <int32_t COUNT = 32>
__device__ __forceinline__ int64_t running_sum(int64_t x, int32_t lane) {
#pragma unroll
  for (int32_t step = 1; step < COUNT; step *= 2) {
    const int64_t below = __shfl_up_sync(ALL_LANES, x, step);
    if (lane >= step) x += below;
  }
  return x;
}

// -------------------------------------------------------------------------------------- accept

struct Walk {
  int32_t n;        // accepted draft tokens
  Verdict verdict;  // why the walk ended: never `accepted`
};

// Each lane judges one draft token; a ballot finds the first that is not accepted.
template <class Probability>
__device__ Walk walk_drafts(const Batch& batch, int32_t b, int32_t lane) {
  for (int32_t start = 0; start < batch.spec_len; start += 32) {
    const int32_t k = start + lane;
    const Verdict verdict =
        k < batch.spec_len ? judge<Probability>(batch, b, k) : Verdict::ended;
    const uint32_t stopped = __ballot_sync(ALL_LANES, verdict != Verdict::accepted);
    if (stopped) {
      const int32_t first = __ffs(stopped) - 1;
      return {start + first, (Verdict)__shfl_sync(ALL_LANES, (int32_t)verdict, first)};
    }
  }
  return {batch.spec_len, Verdict::ended};
}

// -------------------------------------------------------------------------------------- sample

// Loads of 16 bytes, side by side across the warp.
template <class Probability>
constexpr int32_t PACK_SIZE = 16 / (int32_t)sizeof(Probability);

template <class Probability>
constexpr int32_t CHUNK_SIZE = 32 * PACK_SIZE<Probability>;  // what a warp loads at once

// Chunks of a tile, all of which are asked for before any is waited for: memory answers after some
// hundred cycles, and the more is on its way meanwhile, the better. More would not fit in registers.
constexpr int32_t CHUNKS = 4;

// Kept as words, which stay in registers; a probability is taken out when it is needed.
template <class Probability>
struct alignas(16) Pack {
  static constexpr int32_t BITS = 8 * (int32_t)sizeof(Probability), PER_WORD = 32 / BITS;

  uint32_t words[4];

  __device__ float at(int32_t j) const {
    const uint32_t bits = words[j / PER_WORD] >> (j % PER_WORD * BITS);
    Probability x;
    memcpy(&x, &bits, sizeof x);  // the lower bits: every GPU is little-endian
    return widen(x);
  }
  __device__ void set(int32_t j, Probability x) {  // where there was 0
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    words[j / PER_WORD] |= bits << (j % PER_WORD * BITS);
  }
};

// The row that the last token is sampled from, with weights max(p - q, 0).
template <class Probability>
struct Row {
  const Probability* p;
  const Probability* q;  // to be read only if has_q()
  int32_t certain;       // the token at which q is 1, or one of these:
  int32_t size;
  bool in_packs;         // whether it can be read 16 bytes at a time
  static constexpr int32_t NO_Q = -1;     // q is 0 everywhere
  static constexpr int32_t ROW_OF_Q = -2;

  __device__ bool has_q() const { return certain == ROW_OF_Q; }
  __device__ bool is_residual() const { return certain != NO_Q; }

  __device__ bool is_finite(int32_t i) const {
    return rsk::is_finite(widen(p[i])) && (!has_q() || rsk::is_finite(widen(q[i])));
  }

  // p and q from element i on, but for `certain`; from `end` on they are 0.
  __device__ void load_pack(int32_t i, int32_t end, Pack<Probability>& to_p,
                            Pack<Probability>& to_q) const {
    to_p = to_q = {};
    if (i < end) to_p = *(const Pack<Probability>*)(p + i);
    if (i < end && has_q()) to_q = *(const Pack<Probability>*)(q + i);
  }
  __device__ void load_elements(int32_t i, int32_t end, Pack<Probability>& to_p,
                                Pack<Probability>& to_q) const {
    to_p = to_q = {};
#pragma unroll
    for (int32_t j = 0; j < PACK_SIZE<Probability>; ++j) {
      if (i + j < end) to_p.set(j, p[i + j]);
    }
    if (!has_q()) return;
#pragma unroll
    for (int32_t j = 0; j < PACK_SIZE<Probability>; ++j) {
      if (i + j < end) to_q.set(j, q[i + j]);
    }
  }
};

// The same pointer, to global memory, but the compiler no longer knows of what it was computed: else
// it keeps those parts in registers, to compute it anew at each use.
template <class T>
__device__ __forceinline__ const T* computed(const T* pointer) {
#if defined(__CUDACC__)
  asm("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

template <class Probability>
__device__ Row<Probability> row_to_sample(const Batch& batch, int32_t b, const Walk& walk) {
  Row<Probability> row;
  row.p = computed(target_row<Probability>(batch, b, walk.n));
  row.q = computed(draft_row<Probability>(batch, b, walk.n));
  row.size = batch.vocab_size;
  row.certain = Row<Probability>::NO_Q;
  if (walk.verdict == Verdict::rejected) {
    row.certain = batch.draft_probs ? Row<Probability>::ROW_OF_Q
                                    : (int32_t)draft_token(batch, b, walk.n);
  }
  const uintptr_t addresses = (uintptr_t)row.p | (row.has_q() ? (uintptr_t)row.q : 0);
  row.in_packs = row.size % PACK_SIZE<Probability> == 0 && addresses % 16 == 0;
  return row;
}

// How a row is cut: a piece for each warp, and that in stretches for its lanes to keep the sums of.
struct Cut {
  int32_t piece, stretch;  // length
};

// Pieces are whole chunks and stretches whole tiles, so only the row's end is ragged.
template <class Probability>
__host__ __device__ constexpr Cut cut_row(int32_t size, int32_t count) {
  constexpr int32_t chunk = CHUNK_SIZE<Probability>, tile = CHUNKS * chunk;
  const int32_t chunks = (size + chunk - 1) / chunk;
  const int32_t piece = (chunks + count - 1) / count * chunk;
  return {piece, (piece + 32 * tile - 1) / (32 * tile) * tile};
}

struct Piece {
  int32_t begin, end;
  int32_t stretch;  // length
  int64_t total;    // of this lane's stretch
};

__device__ inline Piece piece_of_row(int32_t size, int32_t i, Cut cut) {
  const int64_t begin = (int64_t)i * cut.piece, end = begin + cut.piece;
  return {(int32_t)(begin < size ? begin : size), (int32_t)(end < size ? end : size), cut.stretch};
}

// The sum of the weights max(p - q, 0) in fixed point; `not_finite` becomes NaN if a difference is
// NaN or infinite.
//
// Without the conversion from float to int64, which a GPU does at a fraction of the rate of
// additions: adding 2 to a weight in [0, 1], rounding towards zero, leaves its upper 22 bits in the
// mantissa; adding 2^-19 to what is left leaves the lower 20 there.
template <class Probability>
__device__ int64_t sum_pack(const Pack<Probability>& p, const Pack<Probability>& q,
                            float& not_finite) {
  constexpr float upper = 2.0f, lower = 1.0f / (1 << 19);
  uint32_t upper_bits = 0, lower_bits = 0;  // at most 8 of them, which fit
#pragma unroll
  for (int32_t j = 0; j < PACK_SIZE<Probability>; ++j) {
    const float difference = p.at(j) - q.at(j);
    not_finite = __fmaf_rn(difference, 0.0f, not_finite);
    const float weight = __saturatef(difference);
    const float shifted = __fadd_rz(weight, upper);
    const float rest = weight - (shifted - upper);  // exact
    upper_bits += bits_of(shifted) - bits_of(upper);
    lower_bits += bits_of(__fadd_rz(rest, lower)) - bits_of(lower);
  }
  return ((int64_t)upper_bits << 20) + lower_bits;
}

// A lane's share of what a warp reads at once: one pack of each chunk.
template <class Probability>
struct Tile {
  static constexpr int32_t PACK = PACK_SIZE<Probability>, CHUNK = CHUNK_SIZE<Probability>;

  int64_t sums[CHUNKS];  // of the packs
  int32_t begin;         // in the row; -1: nothing was read

  // Elements that add() reads. A row that does not allow loads of 16 bytes fills one chunk.
  __device__ static int32_t size(const Row<Probability>& row) {
    return row.in_packs ? CHUNKS * CHUNK : CHUNK;
  }

  // Sum the packs from `start` on; what lies beyond the end counts as 0. Returns the tile's sum.
  __device__ int64_t add(const Row<Probability>& row, int32_t start, int32_t end, int32_t lane,
                         float& not_finite) {
    begin = start;
    Pack<Probability> p[CHUNKS], q[CHUNKS];
    // No branch depends on what a load brings, so that all are issued before any is waited for.
    if (row.in_packs) {
#pragma unroll
      for (int32_t c = 0; c < CHUNKS; ++c) {
        row.load_pack(start + c * CHUNK + lane * PACK, end, p[c], q[c]);
      }
    } else {
#pragma unroll
      for (int32_t c = 1; c < CHUNKS; ++c) p[c] = q[c] = {};
      row.load_elements(start + lane * PACK, end, p[0], q[0]);
    }
    int64_t total = 0;
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; ++c) total += sums[c] = sum_pack(p[c], q[c], not_finite);
    if (start <= row.certain && row.certain < end && row.certain - start < size(row)) {
      total += correct_certain(row, lane);
    }
    return sum_over_warp(total);
  }

  // The first element whose running sum exceeds `rest`, as its place in the row. If the sum over
  // the tile does not exceed it: -1, and `rest` is less by that sum.
  __device__ int32_t find(const Row<Probability>& row, int32_t end, int64_t& rest,
                          int32_t lane) const {
    int32_t chunk = -1;
    int64_t sum = 0, totals[CHUNKS];
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; ++c) totals[c] = sum_over_warp(sums[c]);
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; ++c) {
      if (chunk >= 0) continue;
      if (totals[c] > rest) {
        chunk = c;
        sum = sums[c];
      } else {
        rest -= totals[c];
      }
    }
    if (chunk < 0) return -1;
    sum = running_sum(sum, lane);
    const int32_t first = __ffs(__ballot_sync(ALL_LANES, sum > rest)) - 1;
    const int32_t place = begin + chunk * CHUNK + lane * PACK;
    Pack<Probability> p, q;
    if (row.in_packs) {
      row.load_pack(place, end, p, q);
    } else {
      row.load_elements(place, end, p, q);
    }
    int32_t j = PACK;  // the element: going back, the running sum falls to `rest`
#pragma unroll
    for (int32_t i = PACK - 1; i >= 0; --i) {
      if (place + i == row.certain) q.set(i, one(Probability{}));
      j -= sum > rest;
      sum -= fixed_point(p.at(i) - q.at(i));
    }
    return __shfl_sync(ALL_LANES, place + j, first);
  }

 private:
  // The token `certain` was summed with q = 0; there q is 1. Returns what that changes.
  __device__ int64_t correct_certain(const Row<Probability>& row, int32_t lane) {
    const float p = widen(row.p[row.certain]);
    const int64_t change = fixed_point(p - 1.0f) - fixed_point(p);
    int64_t changed = 0;
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; ++c) {
      const int32_t first = begin + c * CHUNK + lane * PACK;
      if (first <= row.certain && row.certain < first + PACK) {
        sums[c] += change;
        changed = change;
      }
    }
    return changed;
  }
};

// The totals of up to COUNT parts of a row, one a lane.
struct Totals {
  int64_t running;  // over the parts up to this lane's
  int64_t all;      // 0: no weight; -1: a probability is not finite

  // The part that the token is in: the first whose running sum exceeds `rest`, which becomes the
  // threshold within that part.
  __device__ int32_t choose(int64_t& rest) const {
    const int32_t part = __ffs(__ballot_sync(ALL_LANES, running > rest)) - 1;
    const int64_t before = __shfl_sync(ALL_LANES, running, part - 1);
    if (part > 0) rest -= before;
    return part;
  }
};

template <int32_t COUNT>
__device__ Totals add_totals(const volatile int64_t* totals, int32_t count, int32_t lane) {
  const int64_t own = lane < count ? totals[lane] : 0;
  const bool finite = __all_sync(ALL_LANES, own >= 0);
  const int64_t running = running_sum<COUNT>(own, lane);
  return {running, finite ? __shfl_sync(ALL_LANES, running, COUNT - 1) : -1};
}

// Sum of the weights of a piece, or -1 if a probability in it is not finite. The tile that was
// read last is left in `tile`.
template <class Probability>
__device__ int64_t sum_piece(const Row<Probability>& row, Piece& piece,
                             Tile<Probability>& tile, int32_t lane) {
  const int32_t own = piece.begin + lane * piece.stretch;
  piece.total = 0;
  int64_t sum = 0;
  float not_finite = 0.0f;
  tile.begin = -1;
  for (int32_t start = piece.begin; start < piece.end; start += tile.size(row)) {
    const int64_t total = tile.add(row, start, piece.end, lane, not_finite);
    if (start >= own && start - own < piece.stretch) piece.total += total;
    sum += total;
  }
  bool finite = true;
  if (!__all_sync(ALL_LANES, not_finite == 0.0f)) {
    // p - q overflows, which is allowed, or one of them is not finite: look closely.
#pragma unroll 1
    for (int32_t i = piece.begin + lane; i < piece.end; i += 32) finite &= row.is_finite(i);
  }
  return __all_sync(ALL_LANES, finite) ? sum : -1;
}

// The token: the first in the piece whose running sum exceeds `rest`. `tile` is as sum_piece() left
// it, and what is in it is not read again.
template <class Probability>
__device__ int32_t find_token(const Row<Probability>& row, const Piece& piece,
                              Tile<Probability>& tile, int64_t rest, int32_t lane) {
  int32_t start = piece.begin;
  if (piece.stretch < piece.end - piece.begin) {
    const Totals stretches{running_sum(piece.total, lane), 0};
    start += stretches.choose(rest) * piece.stretch;
  }
  for (; start < piece.end; start += tile.size(row)) {
    if (tile.begin != start) {
      float ignored = 0.0f;
      tile.add(row, start, piece.end, lane, ignored);
    }
    const int32_t token = tile.find(row, piece.end, rest, lane);
    if (token >= 0) return token;
  }
  return -1;  // not reached: the sum over the piece exceeds `rest`
}

// -------------------------------------------------------------------------------------- result

// token < 0 marks an invalid request.
__device__ inline void write_result_with_warp(const Batch& batch, int32_t b, int32_t n,
                                              int64_t token, int32_t lane) {
  int64_t* row = batch.tokens + (int64_t)b * (batch.spec_len + 1);
#pragma unroll 1  // of a kernel this short, the code itself is slow to fetch
  for (int32_t k = lane; k <= batch.spec_len; k += 32) {
    row[k] = output_token(batch, b, k, n, token);
  }
  if (lane == 0 && batch.num_accepted) batch.num_accepted[b] = token < 0 ? -1 : n;
}

}  // namespace rsk
