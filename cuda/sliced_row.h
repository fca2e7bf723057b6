// What the kernels of a sharded call share: this rank's columns of a row, of probabilities or of
// logits with their law; sums of weights; the header of a message.
#pragma once

#include <cuda_runtime.h>

#include "sharded.h"
#include "warp.h"

namespace rsk::sharded {

constexpr int32_t WARPS = 4;  // of a block
constexpr int32_t GROUP = 8;          // columns that a lane reads together
constexpr int32_t STEP = 32 * GROUP;  // and a warp
static_assert(PIECE % (2 * STEP) == 0, "a piece is a whole number of what a warp asks for at once");

// What a lane reads: 8 values of 32 or 16 bits.
struct alignas(16) Raw {
  uint32_t words[8];
};

struct alignas(16) Quad {
  uint32_t words[4];
};

template <bool IS_LOGITS>
struct SlicedRow {
  const void* data = nullptr;
  int32_t size = 0;  // columns; behind them the row is 0
  Dtype dtype = Dtype::float32;
  bool in_quads = false;  // can be read 16 bytes at a time
  // Of logits:
  RowLaw law{};
  float min_p = 0.0f;
  int32_t start = 0;  // the token of column 0

  __device__ float value(int32_t column) const {
    switch (dtype) {
      case Dtype::float32: return ((const float*)data)[column];
      case Dtype::bfloat16: return widen(((const BFloat16*)data)[column]);
      case Dtype::float16: return widen(((const Float16*)data)[column]);
    }
    return 0.0f;
  }

  // Columns from `column` on, which is a multiple of 8; what is behind the row's end is 0.
  __device__ void load(int32_t column, Raw& raw) const {
    const int32_t quads = dtype == Dtype::float32 ? 2 : 1;
    if (in_quads && column + GROUP <= size) {
      const Quad* from = (const Quad*)data + column / GROUP * quads;
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        if (i < quads) memcpy(raw.words + 4 * i, from + i, sizeof(Quad));
      }
      return;
    }
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) raw.words[i] = 0;
#pragma unroll
    for (int32_t j = 0; j < GROUP; ++j) {
      if (column + j >= size) break;
      if (dtype == Dtype::float32) {
        raw.words[j] = ((const uint32_t*)data)[column + j];
      } else {
        raw.words[j / 2] |= (uint32_t)((const uint16_t*)data)[column + j] << (j % 2 * 16);
      }
    }
  }

  __device__ float value_of(const Raw& raw, int32_t j) const {
    if (dtype == Dtype::float32) return float_of(raw.words[j]);
    const uint16_t bits = (uint16_t)(raw.words[j / 2] >> (j % 2 * 16));
    return dtype == Dtype::bfloat16 ? widen(BFloat16{bits}) : widen(Float16{bits});
  }

  // The probability that a value in that column stands for.
  __device__ float as_probability(float x, int32_t column) const {
    if constexpr (!IS_LOGITS) return x;
    if (is_invalid(law)) return law.normalizer;  // NaN
    return probability(law, min_p, x, start + column);
  }
  __device__ float probability_of(const Raw& raw, int32_t j, int32_t column) const {
    if (IS_LOGITS && column >= size) return 0.0f;
    return as_probability(value_of(raw, j), column);
  }
  __device__ float at(int32_t column) const {
    return column < size ? as_probability(value(column), column) : 0.0f;
  }
};

template <bool IS_LOGITS>
__device__ SlicedRow<IS_LOGITS> sliced_row(const Call& call, int32_t b, const void* data,
                                           int64_t offset, int32_t size, Dtype dtype) {
  SlicedRow<IS_LOGITS> row;
  row.data = (const char*)data + offset * (dtype == Dtype::float32 ? 4 : 2);
  row.size = size;
  row.dtype = dtype;
  row.in_quads = (uintptr_t)row.data % 16 == 0;
  if constexpr (IS_LOGITS) {
    row.min_p = filter_of(call.filters, b).min_p;
    row.start = call.start;
  }
  return row;
}

// Row k of request b. Without laws yet, the logits' values are what they are.
template <bool IS_LOGITS>
__device__ SlicedRow<IS_LOGITS> target_row(const Call& call, int32_t b, int32_t k) {
  const Batch& batch = call.batch;
  auto row = sliced_row<IS_LOGITS>(
      call, b, batch.target_probs,
      b * batch.target_probs_stride[0] + k * batch.target_probs_stride[1], batch.vocab_size,
      batch.dtype);
  if (IS_LOGITS && call.laws) row.law = call.laws[(int64_t)b * (batch.spec_len + 1) + k];
  return row;
}

template <bool IS_LOGITS>
__device__ SlicedRow<IS_LOGITS> draft_row(const Call& call, int32_t b, int32_t k) {
  const Batch& batch = call.batch;
  auto row = sliced_row<IS_LOGITS>(
      call, b, batch.draft_probs,
      b * batch.draft_probs_stride[0] + k * batch.draft_probs_stride[1], batch.draft_vocab_size,
      batch.draft_dtype);
  if (IS_LOGITS && call.draft_laws) row.law = call.draft_laws[(int64_t)b * batch.spec_len + k];
  return row;
}

// ------------------------------------------------------------------------------- sums of weights

// A sum of weights in [0, 1], to which others are clamped, in fixed point: of their upper 22 and
// lower 20 bits (see sum_pack() in pack.h), over at most a lane's share of a piece.
struct WeightSum {
  uint32_t upper = 0, lower = 0;

  __device__ void add(float x) {
    constexpr float two = 2.0f, tiny = 1.0f / (1 << 19);
    const float weight = __saturatef(x);
    const float shifted = __fadd_rz(weight, two);
    const float rest = weight - (shifted - two);  // exact
    upper += bits_of(shifted) - bits_of(two);
    lower += bits_of(__fadd_rz(rest, tiny)) - bits_of(tiny);
  }
  __device__ int64_t total() const { return ((int64_t)upper << 20) + lower; }
};
static_assert(PIECE / 32 * (1ull << 22) < (1ull << 32), "the sums do not overflow");

// The sum over the warp of any integers that do not overflow together.
__device__ __forceinline__ int64_t sum_wide(int64_t x) {
  for (int32_t step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

// ------------------------------------------------------------------------------------- messages

__device__ __forceinline__ void add(int64_t* address, int64_t x) {
  atomicAdd((unsigned long long*)address, (unsigned long long)x);
}

// The header, and its sums over request b's arguments, with which other ranks see that they have
// the same; see make_header() in headers.py.
__device__ inline void write_header(const Call& call, int64_t* message, int32_t b, int32_t lane) {
  const Batch& batch = call.batch;
  if (b == 0 && lane < GIVEN) message[lane] = call.header[lane];
  if (b >= batch.batch_size) return;
  const int32_t size = batch.batch_size, spec_len = batch.spec_len;
  const auto hash = [](int64_t value, int64_t place) {
    return (int64_t)random_word((uint64_t)value, (uint64_t)place, 3);
  };
  int64_t of_drafts = 0, of_laws = 0;
  const int64_t first = (int64_t)b * spec_len;
  for (int32_t k = lane; k < spec_len; k += 32) {
    of_drafts += hash(draft_token(batch, b, k), first + k);
  }
  if (call.is_logits && call.draft_laws && batch.draft_probs && call.offset) {
    const int64_t begin = (int64_t)size * (spec_len + 6);
    for (int32_t i = lane; i < 4 * spec_len; i += 32) {
      const int32_t bits = ((const int32_t*)(call.draft_laws + first))[i];
      of_laws += hash(bits, begin + 4 * first + i);
    }
    add(message + GIVEN + 7, of_laws);
  }
  if (spec_len > 0) add(message + GIVEN, of_drafts);
  int64_t value = 0;
  if (lane == 1) value = (int64_t)seed_of(batch, b);
  if (lane == 2) value = (int64_t)position_of(batch, b);
  if (call.is_logits) {
    const Filter filter = filter_of(call.filters, b);
    if (lane == 3) value = (int32_t)bits_of(filter.temperature);
    if (lane == 4) value = filter.top_k;
    if (lane == 5) value = (int32_t)bits_of(filter.top_p);
    if (lane == 6) value = (int32_t)bits_of(filter.min_p);
  }
  if (lane >= 1 && lane < (call.is_logits ? 7 : 3)) {
    add(message + GIVEN + lane, hash(value, (int64_t)size * (spec_len + lane - 1) + b));
  }
}

}  // namespace rsk::sharded
