// Step 4: several blocks per request, so that a small batch fills the GPU.
//
// One block per request leaves most multiprocessors idle while B is below their number. Here a row
// is cut over several blocks, which cannot wait for one another: they may not all run at once. So
// each leaves its totals in global memory and takes a ticket, and the block that takes the last one
// knows that all the totals are there. It finishes the request.
//
// The tickets must start at 0 in each call: one memset of a workspace that belongs to the call.
#include "block.h"
#include "kernels.h"
#include "launch.h"
#include "piece.h"

namespace rsk::split_vocabulary {

constexpr int32_t THREADS = 256;
constexpr int32_t WARPS = THREADS / 32;
constexpr int32_t MAX_SPLIT = 32;

struct Shared {
  bool is_last;
  int64_t warp_total[WARPS];
};

// The workspace: a ticket per request, then the totals of its blocks and of their warps.
struct Workspace {
  uint32_t* tickets;     // [B]
  int64_t* block_total;  // [B, split]
  int64_t* warp_total;   // [B, split, WARPS]
};

int32_t split_of(const Batch& batch) {
  const int32_t worth_a_block = THREADS * 16;  // probabilities; fewer cost more than they save
  const int32_t wanted = (num_columns(batch) + worth_a_block - 1) / worth_a_block;
  const int32_t resident = 384;  // blocks of this size that a large GPU runs at once
  const int32_t affordable = resident / batch.batch_size;
  const int32_t split = wanted < affordable ? wanted : affordable;
  return split < 1 ? 1 : split < MAX_SPLIT ? split : MAX_SPLIT;
}

size_t bytes_of_tickets(const Batch& batch) {
  return ((size_t)batch.batch_size * sizeof(uint32_t) + 15) / 16 * 16;
}

template <class Probability>
__global__ void __launch_bounds__(THREADS, 3)  // blocks at once: up to 80 registers
    kernel(Batch batch, Workspace workspace, int32_t split, Cut cut) {
  Shared& shared = shared_memory<Shared>();
  const int32_t b = (int32_t)blockIdx.x / split, part = (int32_t)blockIdx.x % split;
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;

  const Walk walk = walk_drafts<Probability>(batch, b, lane);
  if (walk.verdict == Verdict::invalid) {  // all blocks of the request agree
    if (part == 0 && warp == 0) write_result_with_warp(batch, b, walk.n, -1, lane);
    return;
  }
  PackedRow<Probability> row = row_to_sample<Probability>(batch, b, walk);
  const int32_t count = split * WARPS, mine = part * WARPS + warp;
  int64_t* block_total = workspace.block_total + (int64_t)b * split;
  int64_t* warp_total = workspace.warp_total + (int64_t)b * count;

  Tile<Probability> tile;
  Piece piece = piece_of_row(row.size, mine, cut);
  const int64_t sum = sum_piece(row, piece, tile, lane);
  if (lane == 0) shared.warp_total[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    const Totals warps = add_totals<WARPS>(shared.warp_total, WARPS, lane);
    if (lane < WARPS) warp_total[part * WARPS + lane] = shared.warp_total[lane];
    // region ticket
    if (lane == 0) block_total[part] = warps.all;
    __threadfence();  // the totals are visible before the ticket is taken
    __syncwarp();
    if (lane == 0) {
      shared.is_last = atomicAdd(&workspace.tickets[b], 1u) == (uint32_t)split - 1;
    }
    // endregion
  }
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();

  Totals totals = add_totals<MAX_SPLIT>(block_total, split, lane);
  int64_t rest = 0;
  if (totals.all > 0) {
    rest = threshold(sample_word(batch, b, walk.n), totals.all);
    const int32_t block = totals.choose(rest);
    const Totals warps = add_totals<WARPS>(warp_total + block * WARPS, WARPS, lane);
    piece = piece_of_row(row.size, block * WARPS + warps.choose(rest), cut);
  } else if (totals.all == 0 && row.is_residual()) {  // empty, which is rare: this block sums p
    row.draft = Draft::none;
    cut = cut_row<Probability>(row.size, WARPS);
    piece = piece_of_row(row.size, warp, cut);
    const int64_t again = sum_piece(row, piece, tile, lane);
    if (lane == 0) shared.warp_total[warp] = again;
    __syncthreads();
    totals = add_totals<WARPS>(shared.warp_total, WARPS, lane);
    if (totals.all > 0) {
      rest = threshold(sample_word(batch, b, walk.n), totals.all);
      piece = piece_of_row(row.size, totals.choose(rest), cut);
    }
  }
  if (warp != 0) return;
  Tile<Probability> other;  // than what this warp has read, nor did it sum these stretches
  other.begin = -1;
  piece.stretch = piece.end - piece.begin;
  const int64_t token = totals.all > 0 ? find_token(row, piece, other, rest, lane) : -1;
  write_result_with_warp(batch, b, walk.n, token, lane);
}

size_t workspace_bytes(const Batch& batch) {
  return bytes_of_tickets(batch) +
         (size_t)batch.batch_size * split_of(batch) * (WARPS + 1) * sizeof(int64_t);
}

cudaError_t launch(const Batch& batch, void* memory, cudaStream_t stream) {
  const size_t tickets = bytes_of_tickets(batch);
  const int32_t split = split_of(batch);
  int64_t* totals = (int64_t*)((char*)memory + tickets);
  const Workspace workspace{(uint32_t*)memory, totals, totals + (int64_t)batch.batch_size * split};
  const cudaError_t error = cudaMemsetAsync(memory, 0, tickets, stream);
  if (error != cudaSuccess) return error;
  const auto config = launch_config((int64_t)batch.batch_size * split, THREADS, stream);
  return with_probability_type(batch, [&](auto probability) {
    using Probability = decltype(probability);
    const Cut cut = cut_row<Probability>(num_columns(batch), split * WARPS);
    return cudaLaunchKernelEx(&config, kernel<Probability>, batch, workspace, split, cut);
  });
}

const Kernel entry{launch, workspace_bytes};

}  // namespace rsk::split_vocabulary
