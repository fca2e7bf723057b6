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

__device__ __forceinline__ int64_t sum_over_warp(int64_t x) {
  for (int32_t step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

// The sum of x over this lane and the ones below it.
__device__ __forceinline__ int64_t running_sum(int64_t x, int32_t lane) {
  for (int32_t step = 1; step < 32; step *= 2) {
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

// The row that the last token is sampled from, with weights max(p - q, 0).
template <class Probability>
struct Row {
  const Probability* p;
  const Probability* q;  // null: q is 0, except for 1 at the token `certain`
  int32_t certain;       // -1: there is no such token
  int32_t size;

  __device__ bool is_residual() const { return q || certain >= 0; }

  __device__ int64_t weight(int32_t v) const {
    const float draft = q ? widen(q[v]) : v == certain ? 1.0f : 0.0f;
    return fixed_point(widen(p[v]) - draft);
  }
};

template <class Probability>
__device__ Row<Probability> row_to_sample(const Batch& batch, int32_t b, const Walk& walk) {
  Row<Probability> row{target_row<Probability>(batch, b, walk.n), nullptr, -1, batch.vocab_size};
  if (walk.verdict == Verdict::rejected) {
    if (batch.draft_probs) {
      row.q = draft_row<Probability>(batch, b, walk.n);
    } else {
      row.certain = (int32_t)draft_token(batch, b, walk.n);
    }
  }
  return row;
}

// Loads of 16 bytes, side by side across the warp.
template <class Probability>
constexpr int32_t PACK_SIZE = 16 / (int32_t)sizeof(Probability);

template <class Probability>
constexpr int32_t CHUNK_SIZE = 32 * PACK_SIZE<Probability>;  // what a warp loads at once

template <class Probability>
struct alignas(16) Pack {
  Probability x[PACK_SIZE<Probability>];
};

struct Piece {
  int32_t begin, end;
};

// Piece i of a row that is cut into `count`: whole chunks, so only the row's end is ragged.
template <class Probability>
__device__ Piece piece_of_row(int32_t size, int32_t i, int32_t count) {
  const int32_t chunks = (size + CHUNK_SIZE<Probability> - 1) / CHUNK_SIZE<Probability>;
  const int32_t length = (chunks + count - 1) / count * CHUNK_SIZE<Probability>;
  const int64_t begin = (int64_t)i * length, end = begin + length;
  return {(int32_t)(begin < size ? begin : size), (int32_t)(end < size ? end : size)};
}

// A running sum of fixed_point(), without the conversion from float to int64, which a GPU does at a
// fraction of the rate of additions. Adding 2 to a weight in [0, 1], rounding towards zero, leaves
// its upper 22 bits in the mantissa; adding 2^-19 to what is left leaves the lower 20 there.
struct FixedPointSum {
  int64_t total = 0;
  float not_finite = 0.0f;  // NaN once a difference was NaN or infinite

  // Adds COUNT weights max(p - q, 0).
  template <int32_t COUNT>
  __device__ void add(const float (&p)[COUNT], const float (&q)[COUNT]) {
    constexpr float upper = 2.0f, lower = 1.0f / (1 << 19);
    uint32_t upper_bits = 0, lower_bits = 0;  // COUNT <= 8 of them fit
    for (int32_t i = 0; i < COUNT; ++i) {
      const float difference = p[i] - q[i];
      not_finite = __fmaf_rn(difference, 0.0f, not_finite);
      const float weight = __saturatef(difference);
      const float shifted = __fadd_rz(weight, upper);
      const float rest = weight - (shifted - upper);  // exact
      upper_bits += bits_of(shifted) - bits_of(upper);
      lower_bits += bits_of(__fadd_rz(rest, lower)) - bits_of(lower);
    }
    total += ((int64_t)upper_bits << 20) + lower_bits;
  }
};

// Sum of the weights of a piece, or -1 if a probability in it is not finite.
template <class Probability, bool HAS_DRAFT>
__device__ int64_t sum_piece(const Row<Probability>& row, Piece piece, int32_t lane) {
  constexpr int32_t PACK = PACK_SIZE<Probability>;
  FixedPointSum sum;
  const bool aligned = ((uintptr_t)row.p | (uintptr_t)row.q) % 16 == 0;
  int32_t v = piece.begin;
  if (aligned) {
#pragma unroll 4
    for (int32_t i = v + lane * PACK; i + PACK <= piece.end; i += CHUNK_SIZE<Probability>) {
      const Pack<Probability> target = *(const Pack<Probability>*)(row.p + i);
      Pack<Probability> draft{};
      if (HAS_DRAFT) draft = *(const Pack<Probability>*)(row.q + i);
      float p[PACK], q[PACK];
      for (int32_t j = 0; j < PACK; ++j) {
        p[j] = widen(target.x[j]);
        q[j] = HAS_DRAFT ? widen(draft.x[j]) : 0.0f;
      }
      sum.add(p, q);
    }
    v += (piece.end - piece.begin) / PACK * PACK;
  }
#pragma unroll 4
  for (int32_t i = v + lane; i < piece.end; i += 32) {
    const float p[1] = {widen(row.p[i])}, q[1] = {HAS_DRAFT ? widen(row.q[i]) : 0.0f};
    sum.add(p, q);
  }
  if (lane == 0 && piece.begin <= row.certain && row.certain < piece.end) {
    const float p = widen(row.p[row.certain]);  // summed with q = 0 above; there q is 1
    sum.total += fixed_point(p - 1.0f) - fixed_point(p);
  }
  const int64_t total = sum_over_warp(sum.total);
  if (__all_sync(ALL_LANES, sum.not_finite == 0.0f)) return total;
  // p - q overflows, which is allowed, or one of them is not finite: look closely.
  bool finite = true;
  for (int32_t i = piece.begin + lane; i < piece.end; i += 32) {
    finite &= is_finite(widen(row.p[i])) && (!HAS_DRAFT || is_finite(widen(row.q[i])));
  }
  return __all_sync(ALL_LANES, finite) ? total : -1;
}

template <class Probability>
__device__ int64_t sum_piece(const Row<Probability>& row, Piece piece, int32_t lane) {
  return row.q ? sum_piece<Probability, true>(row, piece, lane)
               : sum_piece<Probability, false>(row, piece, lane);
}

struct Choice {
  int64_t total;  // of the row; 0: no weight; -1: a probability is not finite
  int32_t piece;  // that the token is in
  int64_t rest;   // the token is the first in the piece whose running sum exceeds this
};

// Choose a piece from the totals of all, which other threads have written.
__device__ inline Choice choose_piece(const Batch& batch, int32_t b, int32_t n,
                                      const volatile int64_t* piece_total, int32_t count,
                                      int32_t lane) {
  int64_t total = 0;
  bool finite = true;
  for (int32_t i = lane; i < count; i += 32) {
    const int64_t x = piece_total[i];
    total += x;
    finite &= x >= 0;
  }
  total = sum_over_warp(total);
  if (!__all_sync(ALL_LANES, finite)) return {-1, 0, 0};
  if (total == 0) return {0, 0, 0};
  int64_t rest = threshold_of(batch, b, n, total);
  for (int32_t start = 0;; start += 32) {
    const int64_t x = start + lane < count ? piece_total[start + lane] : 0;
    const int64_t running = running_sum(x, lane);
    const uint32_t beyond = __ballot_sync(ALL_LANES, running > rest);
    if (beyond) {
      const int32_t first = __ffs(beyond) - 1;
      return {total, start + first, rest - __shfl_sync(ALL_LANES, running - x, first)};
    }
    rest -= __shfl_sync(ALL_LANES, running, 31);
  }
}

// Find the token: each lane sums a few neighbours, and the lane that goes beyond looks closer.
template <class Probability>
__device__ int32_t find_token(const Row<Probability>& row, Piece piece, int64_t rest,
                              int32_t lane) {
  constexpr int32_t PACK = PACK_SIZE<Probability>;
  for (int32_t start = piece.begin;; start += CHUNK_SIZE<Probability>) {
    const int32_t begin = start + lane * PACK;
    int64_t sum = 0;
    for (int32_t v = begin; v < begin + PACK; ++v) sum += v < piece.end ? row.weight(v) : 0;
    const int64_t running = running_sum(sum, lane);
    const uint32_t beyond = __ballot_sync(ALL_LANES, running > rest);
    if (beyond) {
      const int32_t first = __ffs(beyond) - 1;
      int32_t v = begin;
      if (lane == first) {
        for (rest -= running - sum;; ++v) {
          rest -= row.weight(v);
          if (rest < 0) break;
        }
      }
      return __shfl_sync(ALL_LANES, v, first);
    }
    rest -= __shfl_sync(ALL_LANES, running, 31);
  }
}

// -------------------------------------------------------------------------------------- result

// token < 0 marks an invalid request.
__device__ inline void write_result_with_warp(const Batch& batch, int32_t b, int32_t n,
                                              int64_t token, int32_t lane) {
  int64_t* row = batch.tokens + (int64_t)b * (batch.spec_len + 1);
  for (int32_t k = lane; k <= batch.spec_len; k += 32) {
    row[k] = output_token(batch, b, k, n, token);
  }
  if (lane == 0 && batch.num_accepted) batch.num_accepted[b] = token < 0 ? -1 : n;
}

}  // namespace rsk
