// Tiles: what the lanes of a warp ask for before they wait.
#pragma once

#include "pack.h"
#include "warp.h"

namespace rsk {

// Chunks of a tile, all of which are asked for before any is waited for: the more is on its way
// meanwhile, the better. More would not fit in registers.
constexpr int32_t CHUNKS = 4;

// A lane's share of what a warp reads at once: one pack of each chunk.
template <class Probability>
struct Tile {
  static constexpr int32_t PACK = PACK_SIZE<Probability>, CHUNK = CHUNK_SIZE<Probability>;

  int64_t sums[CHUNKS];  // of the packs
  int32_t begin;         // in the row; -1: nothing was read

  // Elements that add() reads. A row that does not allow loads of 16 bytes fills one chunk.
  __device__ static int32_t size(const PackedRow<Probability>& row) {
    return row.is_aligned ? CHUNKS * CHUNK : CHUNK;
  }

  // Sum the packs from `start` on; what lies beyond the end counts as 0. Returns the tile's sum.
  __device__ int64_t add(const PackedRow<Probability>& row, int32_t start, int32_t end,
                         int32_t lane, float& not_finite) {
    begin = start;
    // region loads first
    Pack<Probability> p[CHUNKS], q[CHUNKS];
    // No branch depends on what a load brings, so that all are issued before any is waited for.
    if (row.is_aligned) {
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
    // endregion
    if (start <= row.certain() && row.certain() < end && row.certain() - start < size(row)) {
      total += correct_certain(row, lane);
    }
    return sum_over_warp(total);
  }

  // The first element whose running sum exceeds `rest`, as its place in the row. If the sum over
  // the tile does not exceed it: -1, and `rest` is less by that sum.
  __device__ int32_t find(const PackedRow<Probability>& row, int32_t end, int64_t& rest,
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
    if (row.is_aligned) {
      row.load_pack(place, end, p, q);
    } else {
      row.load_elements(place, end, p, q);
    }
    int32_t j = PACK;  // the element: going back, the running sum falls to `rest`
#pragma unroll
    for (int32_t i = PACK - 1; i >= 0; --i) {
      if (place + i == row.certain()) q.set(i, one(Element<Probability>{}));
      j -= sum > rest;
      sum -= fixed_point(p.at(i) - q.at(i));
    }
    return __shfl_sync(ALL_LANES, place + j, first);
  }

 private:
  // The token `certain` was summed with q = 0; there q is 1. Returns what that changes.
  __device__ int64_t correct_certain(const PackedRow<Probability>& row, int32_t lane) {
    const float p = widen(row.p[row.certain()]);
    const int64_t change = fixed_point(p - 1.0f) - fixed_point(p);
    int64_t changed = 0;
#pragma unroll
    for (int32_t c = 0; c < CHUNKS; ++c) {
      const int32_t first = begin + c * CHUNK + lane * PACK;
      if (first <= row.certain() && row.certain() < first + PACK) {
        sums[c] += change;
        changed = change;
      }
    }
    return changed;
  }
};

}  // namespace rsk
