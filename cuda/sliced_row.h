// What the kernels of a sharded call share: this rank's columns of a row, of probabilities or of
// logits with their law; sums of weights; the header of a message.
#pragma once

#include <cuda_runtime.h>

#include "launch.h"
#include "pack.h"
#include "sharded.h"
#include "warp.h"

namespace rsk::sharded {

constexpr int32_t WARPS = 4;  // of a block

// Columns that a warp asks for before it waits: 16 a lane, in packs.
constexpr int32_t TILE = 512;
static_assert(PIECE % TILE == 0, "a piece is a whole number of tiles");

// What a lane has of a tile.
template <class Probability>
struct Values {
  static constexpr int32_t PACK = PACK_SIZE<Probability>, COUNT = TILE / 32, PACKS = COUNT / PACK;

  Pack<Probability> packs[PACKS];

  __device__ float at(int32_t i) const { return packs[i / PACK].at(i % PACK); }
  // The column of value i, in a tile that begins at `start`.
  __device__ static int32_t column(int32_t start, int32_t i, int32_t lane) {
    return start + i / PACK * (32 * PACK) + lane * PACK + i % PACK;
  }
};

__device__ __forceinline__ float lowest(float) { return float_of(0xFF800000u); }  // -infinity
__device__ __forceinline__ BFloat16 lowest(BFloat16) { return {0xFF80}; }
__device__ __forceinline__ Float16 lowest(Float16) { return {0xFC00}; }

// This rank's columns of a row. Behind them is nothing: probability 0, logit -infinity.
template <class Probability>
struct SlicedRow {
  RowPointer<Probability> data;
  int32_t size;
  bool is_aligned;  // can be read 16 bytes at a time

  __device__ float operator[](int32_t column) const { return widen(computed(data)[column]); }

  template <bool IS_LOGITS>
  __device__ void load(int32_t start, int32_t lane, Values<Probability>& values) const {
    typedef Element<Probability> Value;
    const auto from = computed(data);
    if constexpr (!std::is_same_v<Probability, Mixed>) {
      if (is_aligned && start + TILE <= size) {
        const Pack<Probability>* packs = (const Pack<Probability>*)(from + start) + lane;
#pragma unroll
        for (int32_t i = 0; i < values.PACKS; ++i) values.packs[i] = packs[i * 32];
        return;
      }
    }
#pragma unroll
    for (int32_t i = 0; i < values.PACKS; ++i) values.packs[i] = {};
#pragma unroll
    for (int32_t i = 0; i < values.COUNT; ++i) {
      const int32_t column = values.column(start, i, lane);
      Value value = IS_LOGITS ? lowest(Value{}) : Value{};
      if (column < size) value = from[column];
      values.packs[i / values.PACK].set(i % values.PACK, value);
    }
  }
};

template <class Probability>
__device__ SlicedRow<Probability> sliced_row(RowPointer<Probability> data, int32_t size) {
  SlicedRow<Probability> row{data, size, false};
  if constexpr (!std::is_same_v<Probability, Mixed>) row.is_aligned = (uintptr_t)data % 16 == 0;
  return row;
}

template <class Probability>
__device__ SlicedRow<Probability> target_slice(const Call& call, int32_t b, int32_t k) {
  const int32_t size = call.batch.vocab_size;
  return sliced_row<Probability>(target_row<Probability>(call.batch, b, k), size);
}
template <class Probability>
__device__ SlicedRow<Probability> draft_slice(const Call& call, int32_t b, int32_t k) {
  const int32_t size = call.batch.draft_vocab_size;
  return sliced_row<Probability>(draft_row<Probability>(call.batch, b, k), size);
}

// Call f(Probability{}) with the type of the call's rows. Without a draft the target's decides.
template <class Function>
cudaError_t with_type(const Call& call, const Function& f) {
  Batch batch = call.batch;
  if (!batch.draft_probs) {
    batch.draft_dtype = batch.dtype;
    batch.draft_vocab_size = batch.vocab_size;
  }
  return with_probability_type(batch, f);
}

// ---------------------------------------------------------------------------- what values mean

// Probabilities mean themselves.
struct Plain {
  static constexpr bool IS_LOGITS = false;

  static __device__ Plain of_target(const Call&, int32_t, int32_t) { return {}; }
  static __device__ Plain of_draft(const Call&, int32_t, int32_t) { return {}; }
  __device__ bool is_usual() const { return true; }
  __device__ float operator()(float x, int32_t) const { return x; }
  __device__ float usual(float x) const { return x; }
};

// Logits, by the law of their row.
struct ByLaw {
  static constexpr bool IS_LOGITS = true;

  RowLaw law;
  float min_p;
  int32_t start;  // the token of column 0

  static __device__ ByLaw of_target(const Call& call, int32_t b, int32_t k) {
    return {call.laws[(int64_t)b * (call.batch.spec_len + 1) + k], min_p_of(call.filters, b),
            call.start};
  }
  static __device__ ByLaw of_draft(const Call& call, int32_t b, int32_t k) {
    return {call.draft_laws[(int64_t)b * call.batch.spec_len + k], min_p_of(call.filters, b),
            call.start};
  }
  static __device__ float min_p_of(const Filters& filters, int32_t b) {
    return filters.min_p ? filters.min_p[b * filters.strides[3]] : filters.all_min_p;
  }

  // Neither invalid nor greedy.
  __device__ bool is_usual() const { return !is_invalid(law) && !is_greedy(law); }
  __device__ float operator()(float x, int32_t column) const {
    return is_invalid(law) ? law.normalizer : probability(law, min_p, x, start + column);
  }
  // The same for a usual law, without a branch.
  __device__ float usual(float x) const {
    const float e = relative_weight(x, law.maximum, law.scale);
    const bool is_kept = (x >= law.threshold) & (e >= min_p);
    return is_kept ? rounded_product(e, law.normalizer) : 0.0f;
  }
};

// The probability in a column, which may lie behind the row's end.
template <class Probability, class Means>
__device__ float probability_at(const SlicedRow<Probability>& row, const Means& means,
                                int32_t column) {
  return column < row.size ? means(row[column], column) : 0.0f;
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
