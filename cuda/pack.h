// Packs: probabilities that a thread loads together, 16 bytes of them.
#pragma once

#include <cuda_runtime.h>

#include "row.h"

namespace rsk {

// What a pack holds of rows of this type: of mixed rows, values that are widened already.
template <class Probability>
using Element = std::conditional_t<std::is_same_v<Probability, Mixed>, float, Probability>;

template <class Probability>
constexpr int32_t PACK_SIZE = 16 / (int32_t)sizeof(Element<Probability>);

template <class Probability>
constexpr int32_t CHUNK_SIZE = 32 * PACK_SIZE<Probability>;  // packs of a warp, side by side

// Kept as words, which stay in registers; a probability is taken out when it is needed.
template <class Probability>
struct alignas(16) Pack {
  typedef Element<Probability> Value;
  static constexpr int32_t BITS = 8 * (int32_t)sizeof(Value), PER_WORD = 32 / BITS;

  uint32_t words[4];

  __device__ float at(int32_t j) const {
    const uint32_t bits = words[j / PER_WORD] >> (j % PER_WORD * BITS);
    Value x;
    memcpy(&x, &bits, sizeof x);  // the lower bits: every GPU is little-endian
    return widen(x);
  }
  __device__ void set(int32_t j, Value x) {  // where there was 0
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    words[j / PER_WORD] |= bits << (j % PER_WORD * BITS);
  }

  // For loops over the elements that are to be short: take the first, or put one before it.
  __device__ float pop() {
    const float first = at(0);
    if constexpr (PER_WORD == 2) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) words[i] = words[i] >> 16 | (i < 3 ? words[i + 1] << 16 : 0);
    } else {
#pragma unroll
      for (int32_t i = 0; i < 3; ++i) words[i] = words[i + 1];
    }
    return first;
  }
  __device__ void push(Value x) {
    if constexpr (PER_WORD == 2) {
#pragma unroll
      for (int32_t i = 3; i >= 0; --i) words[i] = words[i] << 16 | (i > 0 ? words[i - 1] >> 16 : 0);
    } else {
#pragma unroll
      for (int32_t i = 3; i > 0; --i) words[i] = words[i - 1];
      words[0] = 0;
    }
    set(0, x);
  }
};

// A row that is read in packs: 16 bytes at a time if its size and its place in memory allow it.
template <class Probability>
struct PackedRow : Row<Probability> {
  bool is_aligned;

  __device__ PackedRow(const Row<Probability>& row) : Row<Probability>(row), is_aligned(false) {
    if constexpr (!std::is_same_v<Probability, Mixed>) {
      const uintptr_t addresses = (uintptr_t)row.p | (row.has_q() ? (uintptr_t)row.q : 0);
      is_aligned = row.size % PACK_SIZE<Probability> == 0 && addresses % 16 == 0;
    }
  }

  __device__ bool is_finite(int32_t i) const {
    return rsk::is_finite(widen(this->p[i])) &&
           (!this->has_q() || rsk::is_finite(widen(this->q[i])));
  }

  // p and q from element i on, but for `certain`; from `end` on they are 0.
  __device__ void load_pack(int32_t i, int32_t end, Pack<Probability>& to_p,
                            Pack<Probability>& to_q) const {
    to_p = to_q = {};
    if constexpr (!std::is_same_v<Probability, Mixed>) {
      if (i < end) to_p = *(const Pack<Probability>*)(this->p + i);
      if (i < end && this->has_q()) to_q = *(const Pack<Probability>*)(this->q + i);
    }
  }
  __device__ void load_elements(int32_t i, int32_t end, Pack<Probability>& to_p,
                                Pack<Probability>& to_q) const {
    to_p = to_q = {};
#pragma unroll
    for (int32_t j = 0; j < PACK_SIZE<Probability>; ++j) {
      if (i + j < end) to_p.set(j, this->p[i + j]);
    }
    if (!this->has_q()) return;
#pragma unroll
    for (int32_t j = 0; j < PACK_SIZE<Probability>; ++j) {
      if (i + j < end) to_q.set(j, this->q[i + j]);
    }
  }
};

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

}  // namespace rsk
