// A row of logits as the threads of a team hold it, and what they compute from it in one pass: the
// maximum, and sums of weights.
//
// A warp has one piece of the row, in tiles; a lane has one pack of 16 bytes of each tile. The packs
// of the first tiles are copied to shared memory once. What does not fit there is read again.
#pragma once

#include <cuda_runtime.h>

#include "arrivals.h"
#include "pack.h"
#include "row_law.h"
#include "team.h"

namespace rsk {

// ---------------------------------------------------------------------------------- elements

template <class Logit>
constexpr uint32_t MINUS_INFINITY = 0xFF800000u;
template <>
constexpr uint32_t MINUS_INFINITY<BFloat16> = 0xFF80u;
template <>
constexpr uint32_t MINUS_INFINITY<Float16> = 0xFC00u;

// Floats in the order of integers. A NaN is the largest of all. Both zeros have the order of +0, as
// they are equal in every comparison; the order before it, of -0, is that of no logit.
__device__ __forceinline__ int32_t order_of(float x) {
  const int32_t bits = (int32_t)bits_of(rounded_sum(x, 0.0f));
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
template <class Logit>
struct Largest {
  using Value = Element<Logit>;
  static constexpr bool IS_PAIR = sizeof(Value) == 2;

  uint32_t word;  // of one 32-bit logit or of two 16-bit ones

  __device__ Largest()
      : word(MINUS_INFINITY<Logit> | (IS_PAIR ? MINUS_INFINITY<Logit> << 16 : 0)) {}

  __device__ void add(const Pack<Logit>& pack) {
    word = larger_word(word, larger_word(larger_word(pack.words[0], pack.words[1]),
                                         larger_word(pack.words[2], pack.words[3])));
  }
  __device__ float value() const {
    if constexpr (IS_PAIR) return larger(of_bits(word & 0xFFFFu), of_bits(word >> 16));
    return of_bits(word);
  }

 private:
  __device__ static float of_bits(uint32_t bits) {
    Value x;
    memcpy(&x, &bits, sizeof x);
    return widen(x);
  }
  __device__ static uint32_t larger_word(uint32_t a, uint32_t b) {
    if constexpr (!IS_PAIR) {
      return bits_of(larger(float_of(a), float_of(b)));
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
      uint32_t result;
      if constexpr (std::is_same_v<Value, BFloat16>) {
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
      } else {
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
      }
      return result;
#else
      uint32_t result = 0;
      for (int32_t shift = 0; shift < 32; shift += 16) {
        const float x = of_bits(a >> shift & 0xFFFFu), y = of_bits(b >> shift & 0xFFFFu);
        result |= ((x > y || x != x ? a : b) >> shift & 0xFFFFu) << shift;
      }
      return result;
#endif
    }
  }
};

template <class Logit>
__device__ __forceinline__ float largest_of(const Pack<Logit>& pack) {
  Largest<Logit> largest;
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
  static constexpr int32_t PACK = PACK_SIZE<Logit>;

  RowPointer<Logit> x;
  int32_t size;     // of the row
  int32_t begin;    // of this lane's pack of the first tile, in the row
  int32_t end;      // of the warp's piece
  PlaceInShared place;  // of that pack; a tile on is 32 places on
  int32_t tiles, tiles_held;
  bool is_aligned;  // whether it can be read 16 bytes at a time

  // `which` of the rows that are held at once: 0 or 1.
  __device__ static LogitRow make(const Team& team, const Tiling& tiling, RowPointer<Logit> x,
                                  int32_t size, int32_t which) {
    const int32_t first = (team.rank * team.warps + team.warp) * tiling.piece;
    bool is_aligned = false;
    if constexpr (std::is_pointer_v<RowPointer<Logit>>) is_aligned = (uintptr_t)x % 16 == 0;
    return {computed(x),
            size,
            (first + team.lane) * PACK,
            (first + tiling.piece) * PACK,
            place_in_shared((which * team.warps + team.warp) * tiling.held * 32 + team.lane),
            tiling.tiles,
            tiling.held,
            is_aligned};
  }

  __device__ int32_t start(int32_t tile) const { return begin + tile * 32 * PACK; }
  __device__ bool is_whole_pack(int32_t i) const { return i < end && i + PACK <= size; }

  __device__ Element<Logit> element(int32_t i) const {
    if (i < end && i < size) return x[i];
    Element<Logit> nothing;
    const uint32_t bits = MINUS_INFINITY<Logit>;
    memcpy(&nothing, &bits, sizeof nothing);
    return nothing;
  }

  // Begin to bring tiles [from, to) to shared memory, as one group of copies. Beyond the end of the
  // row or the piece there is minus infinity.
  __device__ void begin_copies(int32_t from, int32_t to) const {
    int32_t t = from;
    if constexpr (std::is_pointer_v<RowPointer<Logit>>) {  // all but the last are simple
      if (is_aligned && is_whole_pack(start(to - 2))) {
#pragma unroll 4
        for (; t < to - 1; ++t) begin_copy(places_on(place, 32 * t), x + start(t));
      }
    }
#pragma unroll 1
    for (; t < to; ++t) {
      const int32_t i = start(t);
      if constexpr (std::is_pointer_v<RowPointer<Logit>>) {
        if (is_aligned && is_whole_pack(i)) {
          begin_copy(places_on(place, 32 * t), x + i);
          continue;
        }
      }
      Pack<Logit> pack{};
#pragma unroll
      for (int32_t j = 0; j < PACK; ++j) pack.set(j, element(i + j));
      store_place(places_on(place, 32 * t), pack.words);
    }
    end_group_of_copies();
  }

  // A pack that is not held. Rows are seldom so long, and seldom not aligned, so this is short.
  __device__ Pack<Logit> fetch(int32_t i) const {
    if constexpr (std::is_pointer_v<RowPointer<Logit>>) {
      if (is_aligned && is_whole_pack(i)) return *(const Pack<Logit>*)(x + i);
    }
    Pack<Logit> pack{};
#pragma unroll 1
    for (int32_t j = PACK - 1; j >= 0; --j) {
      pack.push(element(i + j));
    }
    return pack;
  }

  // Element j of a lane's pack of a tile; after a barrier. And where it is in the row.
  __device__ int32_t place_of(const Team& team, int32_t lane, int32_t tile, int32_t j) const {
    return begin + (tile * 32 + lane - team.lane) * PACK + j;
  }
  __device__ float at(const Team& team, int32_t lane, int32_t tile, int32_t j) const {
    Element<Logit> x;
    if (tile < tiles_held) {
      load_part_of_place(places_on(place, 32 * tile + lane - team.lane), j, x);
    } else {
      x = element(place_of(team, lane, tile, j));
    }
    return widen(x);
  }

  __device__ Pack<Logit> pack(int32_t tile) const {
    if (tile >= tiles_held) return fetch(start(tile));
    Pack<Logit> pack;
    load_place(places_on(place, 32 * tile), pack.words);
    return pack;
  }
};

// The largest logit of this thread's packs in tiles [from, to).
template <class Logit>
__device__ void add_largest(const LogitRow<Logit>& row, int32_t from, int32_t to,
                            Largest<Logit>& largest) {
#pragma unroll 2
  for (int32_t t = from; t < to; ++t) largest.add(row.pack(t));
}

// The weights of this thread's packs, summed.
template <class Logit>
__device__ int64_t sum_weights(const LogitRow<Logit>& row, const Curve& curve) {
  constexpr int32_t PACK = LogitRow<Logit>::PACK, AT_ONCE = FixedPointSum::MOST / PACK;
  int64_t total = 0;
#pragma unroll 1
  for (int32_t first = 0; first < row.tiles; first += AT_ONCE) {
    const int32_t last = min(first + AT_ONCE, row.tiles);
    FixedPointSum sum;
#pragma unroll 1
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
