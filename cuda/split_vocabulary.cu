// Step 3: several blocks per request, so that a small batch fills the GPU.
//
// One block per request leaves most multiprocessors idle while B is below their number. Here a row
// is cut over several blocks, which cannot wait for one another: they may not all run at once. So
// each leaves its totals in global memory and takes a ticket, and the block that takes the last one
// knows that all the totals are there. It finishes the request.
//
// The tickets must start at 0 in each call: one memset of a workspace that belongs to the call.
#include "kernels.h"
#include "launch.h"
#include "warp.h"

namespace rsk::split_vocabulary {

constexpr int32_t THREADS = 256;
constexpr int32_t WARPS = THREADS / 32;
constexpr int32_t MAX_SPLIT = 32;

struct Shared {
  bool is_last;
  int64_t piece_total[WARPS];
};

// The workspace: a ticket per request, then the totals of its pieces.
struct Workspace {
  uint32_t* tickets;     // [B]
  int64_t* piece_total;  // [B, split * WARPS]
};

int32_t split_of(const Batch& batch) {
  const int32_t worth_a_block = THREADS * 16;  // probabilities; fewer cost more than they save
  const int32_t wanted = (batch.vocab_size + worth_a_block - 1) / worth_a_block;
  const int32_t resident = 1024;  // blocks of this size that a large GPU runs at once
  const int32_t affordable = resident / batch.batch_size;
  const int32_t split = wanted < affordable ? wanted : affordable;
  return split < 1 ? 1 : split < MAX_SPLIT ? split : MAX_SPLIT;
}

size_t bytes_of_tickets(const Batch& batch) {
  return ((size_t)batch.batch_size * sizeof(uint32_t) + 15) / 16 * 16;
}

template <class Probability>
__global__ void __launch_bounds__(THREADS, 4)  // blocks at once: up to 64 registers
    kernel(Batch batch, Workspace workspace, int32_t split) {
  Shared& shared = shared_memory<Shared>();
  const int32_t b = (int32_t)blockIdx.x / split, part = (int32_t)blockIdx.x % split;
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;

  const Walk walk = walk_drafts<Probability>(batch, b, lane);
  if (walk.verdict == Verdict::invalid) {  // all blocks of the request agree
    if (part == 0 && warp == 0) write_result_with_warp(batch, b, walk.n, -1, lane);
    return;
  }
  Row<Probability> row = row_to_sample<Probability>(batch, b, walk);
  const int32_t count = split * WARPS;
  int64_t* piece_total = workspace.piece_total + (int64_t)b * count;
  const int32_t mine = part * WARPS + warp;
  const int64_t total =
      sum_piece(row, piece_of_row<Probability>(row.size, mine, count), lane);
  if (lane == 0) {
    piece_total[mine] = total;
    __threadfence();  // the total is visible before the ticket is taken
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.is_last = atomicAdd(&workspace.tickets[b], 1u) == (uint32_t)split - 1;
  }
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();

  Choice choice = choose_piece(batch, b, walk.n, piece_total, count, lane);
  Piece piece = piece_of_row<Probability>(row.size, choice.piece, count);
  if (choice.total == 0 && row.is_residual()) {  // empty, which is rare: this block alone sums p
    row.q = nullptr;
    row.certain = -1;
    piece = piece_of_row<Probability>(row.size, warp, WARPS);
    const int64_t again = sum_piece(row, piece, lane);
    if (lane == 0) shared.piece_total[warp] = again;
    __syncthreads();
    choice = choose_piece(batch, b, walk.n, shared.piece_total, WARPS, lane);
    piece = piece_of_row<Probability>(row.size, choice.piece, WARPS);
  }
  if (warp != 0) return;
  const int64_t token = choice.total > 0 ? find_token(row, piece, choice.rest, lane) : -1;
  write_result_with_warp(batch, b, walk.n, token, lane);
}

size_t workspace_bytes(const Batch& batch) {
  return bytes_of_tickets(batch) +
         (size_t)batch.batch_size * split_of(batch) * WARPS * sizeof(int64_t);
}

cudaError_t launch(const Batch& batch, void* memory, cudaStream_t stream) {
  const size_t tickets = bytes_of_tickets(batch);
  const Workspace workspace{(uint32_t*)memory, (int64_t*)((char*)memory + tickets)};
  const cudaError_t error = cudaMemsetAsync(memory, 0, tickets, stream);
  if (error != cudaSuccess) return error;
  const int32_t split = split_of(batch);
  const auto config = launch_config((int64_t)batch.batch_size * split, THREADS, stream);
  return RSK_LAUNCH(&config, kernel, batch, workspace, split);
}

}  // namespace rsk::split_vocabulary
