// Step 2: one block per request. Its warps share the row and read it 16 bytes a lane, side by side.
//
// Each warp judges all the drafts for itself, 32 at a time, which costs less than a barrier to share
// the answer. Then it sums a piece of the row. One barrier later every warp knows all the pieces'
// totals, hence which piece the token is in, and the warp that owns that piece finds it there.
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace rsk::block_per_sequence {

constexpr int32_t THREADS = 256;
constexpr int32_t WARPS = THREADS / 32;

struct Shared {
  int64_t warp_total[WARPS];
};

template <class Probability>
__global__ void __launch_bounds__(THREADS, 4) kernel(Batch batch, Cut cut) {
  Shared& shared = shared_memory<Shared>();
  const int32_t b = (int32_t)blockIdx.x;
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;

  const Walk walk = walk_drafts<Probability>(batch, b, lane);
  if (walk.verdict == Verdict::invalid) {
    if (warp == 0) write_result_with_warp(batch, b, walk.n, -1, lane);
    return;
  }
  Row<Probability> row = row_to_sample<Probability>(batch, b, walk);
  Piece piece = piece_of_row(row.size, warp, cut);

  Tile<Probability> tile;
  Totals warps;
  for (;;) {
    const int64_t sum = sum_piece(row, piece, tile, lane);
    if (lane == 0) shared.warp_total[warp] = sum;
    __syncthreads();
    warps = add_totals<WARPS>(shared.warp_total, WARPS, lane);
    if (warps.all != 0 || !row.is_residual()) break;
    row.certain = row.NO_Q;  // the residual is empty: sample from p
    __syncthreads();  // before the totals are overwritten
  }
  int64_t token = -1;  // nothing to sample from, or not finite
  bool is_writer = warp == 0;
  if (warps.all > 0) {
    int64_t rest = threshold(sample_word(batch, b, walk.n), warps.all);
    is_writer = warp == warps.choose(rest);
    if (is_writer) token = find_token(row, piece, tile, rest, lane);
  }
  if (is_writer) write_result_with_warp(batch, b, walk.n, token, lane);
}

cudaError_t launch(const Batch& batch, void*, cudaStream_t stream) {
  const auto config = launch_config(batch.batch_size, THREADS, stream);
  return with_probability_type(batch, [&](auto probability) {
    using Probability = decltype(probability);
    const Cut cut = cut_row<Probability>(batch.vocab_size, WARPS);
    return cudaLaunchKernelEx(&config, kernel<Probability>, batch, cut);
  });
}

}  // namespace rsk::block_per_sequence
