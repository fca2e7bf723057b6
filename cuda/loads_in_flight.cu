// Step 3: as step 2, but a thread asks for all that it can before it waits for any of it.
//
// Memory answers after hundreds of cycles, however little is asked for. So the coins of 32 drafts
// are tossed at once, a lane for each (warp.h). A lane loads 16 bytes at a time (pack.h), and asks
// for several such packs before it looks at the first (tile.h). The warp that has the token goes
// straight to the right tile, instead of reading its piece once more (piece.h).
//
// Nor does a warp wait for others but once: it sums what its lanes have read without a barrier, and
// one barrier later it knows the totals of all pieces.
#include "block.h"
#include "kernels.h"
#include "launch.h"
#include "piece.h"

namespace rsk::loads_in_flight {

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
  PackedRow<Probability> row = row_to_sample<Probability>(batch, b, walk);
  Piece piece = piece_of_row(row.size, warp, cut);

  Tile<Probability> tile;
  Totals warps;
  for (;;) {
    const int64_t sum = sum_piece(row, piece, tile, lane);
    if (lane == 0) shared.warp_total[warp] = sum;
    __syncthreads();
    warps = add_totals<WARPS>(shared.warp_total, WARPS, lane);
    if (warps.all != 0 || !row.is_residual()) break;
    row.draft = Draft::none;  // the residual is empty: sample from p
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
    const Cut cut = cut_row<Probability>(num_columns(batch), WARPS);
    return cudaLaunchKernelEx(&config, kernel<Probability>, batch, cut);
  });
}

const Kernel entry{launch, nullptr};

}  // namespace rsk::loads_in_flight
