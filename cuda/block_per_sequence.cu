// Step 2: one block per request. Its warps share the row and read it 16 bytes a lane, side by side.
//
// Each warp judges all the drafts for itself, 32 at a time, which costs less than a barrier to share
// the answer. Then it sums a piece of the row. One barrier later every warp knows all the pieces'
// totals, hence which piece the token is in, and the warp that owns that piece finds it there.
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace rsk::block_per_sequence {

constexpr int32_t THREADS = 1024;
constexpr int32_t WARPS = THREADS / 32;

struct Shared {
  int64_t piece_total[WARPS];
};

template <class Probability>
__global__ void __launch_bounds__(THREADS, 1) kernel(Batch batch) {
  Shared& shared = shared_memory<Shared>();
  const int32_t b = (int32_t)blockIdx.x;
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;

  const Walk walk = walk_drafts<Probability>(batch, b, lane);
  if (walk.verdict == Verdict::invalid) {
    if (warp == 0) write_result_with_warp(batch, b, walk.n, -1, lane);
    return;
  }
  Row<Probability> row = row_to_sample<Probability>(batch, b, walk);
  const Piece piece = piece_of_row<Probability>(row.size, warp, WARPS);

  Choice choice;
  for (;;) {
    const int64_t total = sum_piece(row, piece, lane);
    if (lane == 0) shared.piece_total[warp] = total;
    __syncthreads();
    choice = choose_piece(batch, b, walk.n, shared.piece_total, WARPS, lane);
    if (choice.total != 0 || !row.is_residual()) break;
    row.q = nullptr;  // the residual is empty: sample from p
    row.certain = -1;
    __syncthreads();  // before the totals are overwritten
  }
  if (warp != choice.piece) return;  // piece 0 if there is no token
  const int64_t token = choice.total > 0 ? find_token(row, piece, choice.rest, lane) : -1;
  write_result_with_warp(batch, b, walk.n, token, lane);
}

cudaError_t launch(const Batch& batch, void*, cudaStream_t stream) {
  const auto config = launch_config(batch.batch_size, THREADS, stream);
  return RSK_LAUNCH(&config, kernel, batch);
}

}  // namespace rsk::block_per_sequence
