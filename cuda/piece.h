// Pieces: the part of a row that one warp sums tile by tile, and perhaps searches.
#pragma once

#include "tile.h"

namespace rsk {

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

// Sum of the weights of a piece, or -1 if a probability in it is not finite. The tile that was
// read last is left in `tile`.
template <class Probability>
__device__ int64_t sum_piece(const PackedRow<Probability>& row, Piece& piece,
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
__device__ int32_t find_token(const PackedRow<Probability>& row, const Piece& piece,
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

}  // namespace rsk
