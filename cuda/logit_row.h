// A row of logits as the threads of a team hold it, and what they compute from it in one pass: the
// maximum, and sums of weights.
//
// A warp has one piece of the row, in tiles; a lane has one pack of 16 bytes of each tile. The packs
// of the first tiles are copied to shared memory once. What does not fit there is read again.
#pragma once

#include <cuda_runtime.h>

#include "arrivals.h"
#include "row_law.h"
#include "team.h"
#include "warp.h"

namespace rsk {

// ---------------------------------------------------------------------------------- elements

// Where a row's logits are. Stored is the type that they have in a pack.
template <class Logit>
struct Source {
  using Stored = Logit;
  const Logit* logits;

  __device__ Source() = default;
  __device__ Source(const void* tensor, Dtype, int64_t offset)
      : logits((const Logit*)tensor + offset) {}
  __device__ Stored at(int32_t i) const { return logits[i]; }
  __device__ const void* from(int32_t i) const { return logits + i; }
};

// Of any type, known only at run time, and widened as they are read.
struct AnyLogit {};
template <>
struct Source<AnyLogit> {
  using Stored = float;
  const char* logits;
  Dtype dtype;

  __device__ Source() = default;
  __device__ Source(const void* tensor, Dtype dtype, int64_t offset)
      : logits((const char*)tensor + offset * (dtype == Dtype::float32 ? 4 : 2)), dtype(dtype) {}
  __device__ Stored at(int32_t i) const {
    switch (dtype) {
      case Dtype::bfloat16: return widen(((const BFloat16*)logits)[i]);
      case Dtype::float16: return widen(((const Float16*)logits)[i]);
      default: return ((const float*)logits)[i];
    }
  }
  __device__ const void* from(int32_t i) const { return logits + (int64_t)i * 4; }
};

template <class Stored>
constexpr uint32_t MINUS_INFINITY = 0xFF800000u;
template <>
constexpr uint32_t MINUS_INFINITY<BFloat16> = 0xFF80u;
template <>
constexpr uint32_t MINUS_INFINITY<Float16> = 0xFC00u;

// Floats in the order of integers. A NaN is the largest of all.
__device__ __forceinline__ int32_t order_of(float x) {
  const int32_t bits = (int32_t)bits_of(x);
  return x != x ? 0x7FC00000 : bits ^ ((bits >> 31) & 0x7FFFFFFF);
}
__device__ __forceinline__ float in_order(int32_t order) {
  return float_of((uint32_t)(order ^ ((order >> 31) & 0x7FFFFFFF)));
}
constexpr int32_t LEAST_ORDER = (int32_t)0x807FFFFF;  // of minus infinity

__device__ __forceinline__ float larger(float a, float b) {  // NaN if one is
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a > b || a != a ? a : b;
#endif
}

// The largest of logits, in a word.
template <class Stored>
struct Largest {
  uint32_t word;  // of one 32-bit logit or of two 16-bit ones

  static constexpr bool IS_PAIR = sizeof(Stored) == 2;

  __device__ Largest()
      : word(MINUS_INFINITY<Stored> | (IS_PAIR ? MINUS_INFINITY<Stored> << 16 : 0)) {}

  __device__ static float half(uint32_t bits) {
    Stored x;
    memcpy(&x, &bits, sizeof x);
    return widen(x);
  }
  __device__ float value() const {
    if constexpr (IS_PAIR) return larger(half(word & 0xFFFFu), half(word >> 16));
    return half(word);
  }

  __device__ static uint32_t larger_word(uint32_t a, uint32_t b) {
    if constexpr (!IS_PAIR) return bits_of(larger(float_of(a), float_of(b)));
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    uint32_t result;
    if constexpr (std::is_same_v<Stored, BFloat16>) {
      asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    } else {
      asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    }
    return result;
#else
    uint32_t result = 0;
    for (int32_t shift = 0; shift < 32; shift += 16) {
      const uint32_t x = a >> shift & 0xFFFFu, y = b >> shift & 0xFFFFu;
      const float fx = half(x), fy = half(y);
      result |= (fx > fy || fx != fx ? x : y) << shift;
    }
    return result;
#endif
  }
  __device__ void add(const Pack<Stored>& pack) {
    word = larger_word(word, larger_word(larger_word(pack.words[0], pack.words[1]),
                                         larger_word(pack.words[2], pack.words[3])));
  }
};

template <class Stored>
__device__ __forceinline__ float largest_of(const Pack<Stored>& pack) {
  Largest<Stored> largest;
  largest.add(pack);
  return largest.value();
}

// --------------------------------------------------------------------------------- weights

// 2^((x - m) c) as relative_weight() in row_law.h computes it, in fewer instructions: with exponents
// in units of 64, an instruction's saturation to [0, 1] is what keeps them from running over. Every
// constant is a power of two times that of the specification, so every rounding is the same. Below
// 2^-42 the result is some number there and not 0; its fixed point is 0.
struct Curve {
  float maximum, scale;  // the scale is c / 64

  __device__ Curve() = default;
  __device__ explicit Curve(const RowLaw& law) : maximum(law.maximum), scale(law.scale / 64.0f) {}

  // How far below the maximum, in units of 64 factors of two.
  __device__ float depth(float x) const {
    return __saturatef(rounded_product(rounded_sum(maximum, -x), scale));
  }
  __device__ static float weight_at(float depth) {
    constexpr float magic = 196608.0f;  // 1.5 * 2^17: adding it rounds to 1/64, ties to even
    const float shifted = rounded_sum(depth, magic);
    const float f = rounded_sum(depth, -rounded_sum(shifted, -magic));
    float r = -0x1.5bba14p+20f;
    r = rounded_sum(rounded_product(r, f), 0x1.3cea88p+17f);
    r = rounded_sum(rounded_product(r, f), -0x1.c6b752p+13f);
    r = rounded_sum(rounded_product(r, f), 0x1.ebf9bcp+9f);
    r = rounded_sum(rounded_product(r, f), -0x1.62e42ap+5f);
    r = rounded_sum(rounded_product(r, f), 1.0f);
    return float_of(bits_of(r) - (bits_of(shifted) << 23));
  }
  __device__ float weight(float x) const { return weight_at(depth(x)); }
  __device__ float weight_or_zero(float x) const {  // exactly 0 below 2^-42
    const float depth_of_x = depth(x);
    const float w = weight_at(depth_of_x);
    return depth_of_x > 42.0f / 64.0f ? 0.0f : w;
  }
};

// A sum of numbers in [0, 1], each in fixed point: floor(w * 2^42).
//
// Without the conversion from float to int64, which a GPU does at a fraction of the rate of
// additions: adding 2 to a weight, rounding towards zero, leaves its upper 22 bits in the mantissa;
// adding 2^-19 to what is left leaves the lower 20 there.
struct FixedPointSum {
  static constexpr int32_t MOST = 1023;  // numbers, before the upper half overflows
  uint32_t upper = 0, lower = 0;         // of the mantissas; the rest of the bits is the same in all

  __device__ __forceinline__ void add(float w) {
    const float high = __fadd_rz(w, 2.0f);
    const float low = __fadd_rz(w, rounded_sum(2.0f + 0x1p-19f, -high));
    upper += bits_of(high);
    lower += bits_of(low);
  }
  __device__ int64_t total(uint32_t count) const {
    const uint32_t high = upper - count * bits_of(2.0f), low = lower - count * bits_of(0x1p-19f);
    return ((int64_t)high << 20) + low;
  }
};

// --------------------------------------------------------------------------------- the row

// How a team cuts a row, in packs.
struct Tiling {
  int32_t piece;  // packs of a warp
  int32_t tiles;  // of a warp; a tile is 32 packs
  int32_t held;   // of them, those that are kept in shared memory
};

template <class Logit>
struct LogitRow {
  using Stored = typename Source<Logit>::Stored;
  using Elements = Pack<Stored>;
  static constexpr int32_t PACK = PACK_SIZE<Stored>;

  Source<Logit> source;
  Elements* held;   // this lane's pack of the first tile; of tile t it is held[32 t]
  int32_t size;     // of the row
  int32_t begin;    // of this lane's pack of the first tile, in the row
  int32_t end;      // of the warp's piece
  int32_t tiles, tiles_held;
  bool in_packs;    // whether it can be read 16 bytes at a time

  __device__ LogitRow() = default;
  // `which` of the rows that are held at once: 0 or 1.
  __device__ LogitRow(const Team& team, const Tiling& tiling, Source<Logit> source, int32_t size,
                      int32_t which)
      : source(source), size(size), tiles(tiling.tiles), tiles_held(tiling.held) {
    const int32_t first = (team.rank * WARPS + team.warp) * tiling.piece;
    begin = (first + team.lane) * PACK;
    end = (first + tiling.piece) * PACK;
    held = (Elements*)dynamic_shared_memory() +
           ((which * WARPS + team.warp) * tiles_held * 32 + team.lane);
    in_packs = !std::is_same_v<Logit, AnyLogit> && (uintptr_t)source.from(0) % 16 == 0;
  }

  __device__ int32_t start(int32_t tile) const { return begin + tile * 32 * PACK; }
  __device__ bool is_whole_pack(int32_t i) const { return i < end && i + PACK <= size; }

  // From global memory; beyond the end of the row or the piece there is minus infinity.
  __device__ Elements fetch(int32_t i) const {
    Elements pack;
    if (in_packs && is_whole_pack(i)) {
      if constexpr (!std::is_same_v<Logit, AnyLogit>) pack = *(const Elements*)source.from(i);
      return pack;
    }
#pragma unroll
    for (uint32_t& word : pack.words) word = 0;
#pragma unroll
    for (int32_t j = 0; j < PACK; ++j) {
      uint32_t bits = MINUS_INFINITY<Stored>;
      if (i < end && i + j < size) {
        const Stored x = source.at(i + j);
        memcpy(&bits, &x, sizeof x);
      }
      pack.words[j / Elements::PER_WORD] |= bits << (j % Elements::PER_WORD * Elements::BITS);
    }
    return pack;
  }

  // Begin to bring tiles [from, to) to shared memory, as one group of copies.
  __device__ void begin_copies(int32_t from, int32_t to) const {
    for (int32_t t = from; t < to; ++t) {
      const int32_t i = start(t);
      if (in_packs && is_whole_pack(i)) {
        begin_copy(&held[32 * t], source.from(i));
      } else {
        held[32 * t] = fetch(i);
      }
    }
    end_group_of_copies();
  }

  __device__ Elements pack(int32_t tile) const {
    return tile < tiles_held ? held[32 * tile] : fetch(start(tile));
  }
};

// The largest logit of this thread's packs in tiles [from, to).
template <class Logit>
__device__ void add_largest(const LogitRow<Logit>& row, int32_t from, int32_t to,
                            Largest<typename LogitRow<Logit>::Stored>& largest) {
  for (int32_t t = from; t < to; ++t) largest.add(row.pack(t));
}

// The weights of this thread's packs, summed.
template <class Logit>
__device__ int64_t sum_weights(const LogitRow<Logit>& row, Curve curve) {
  constexpr int32_t PACK = LogitRow<Logit>::PACK, AT_ONCE = FixedPointSum::MOST / PACK;
  int64_t total = 0;
  for (int32_t first = 0; first < row.tiles; first += AT_ONCE) {
    const int32_t last = min(first + AT_ONCE, row.tiles);
    FixedPointSum sum;
    for (int32_t t = first; t < last; ++t) {
      const auto pack = row.pack(t);
#pragma unroll
      for (int32_t j = 0; j < PACK; ++j) sum.add(curve.weight(pack.at(j)));
    }
    total += sum.total((uint32_t)((last - first) * PACK));
  }
  return total;
}

}  // namespace rsk
