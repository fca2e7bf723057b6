// Step 4: the blocks of a request form a thread-block cluster (compute capability 9.0 and above).
//
// A cluster's blocks do run at once, on neighbouring multiprocessors, and can write to each other's
// shared memory. Each warp sends its total to every block; after one cluster barrier each block
// knows all of them, and the warp that owns the token's piece finishes the request. There is no
// workspace, no memset, no atomic, and global memory is written only with the result.
#include "kernels.h"
#include "launch.h"
#include "warp.h"

#include <cooperative_groups.h>

namespace rsk::cluster {

constexpr int32_t THREADS = 256;
constexpr int32_t WARPS = THREADS / 32;
constexpr int32_t MAX_CLUSTER = 16;  // more than 8 must be asked for
constexpr int32_t RESIDENT = 4;      // blocks that a multiprocessor runs at once: up to 64 registers

struct Shared {
  // Once for the residual and once more for p, should the residual be empty: nobody overwrites
  // totals that another block may still be reading.
  int64_t piece_total[2][MAX_CLUSTER * WARPS];
};

// Blocks per request: as many as run at once, while each warp still has 16 bytes a lane to read.
int32_t cluster_size(const Batch& batch, int32_t multiprocessors) {
  const int32_t pack = batch.dtype == Dtype::float32 ? 4 : 8;
  const int64_t resident = (int64_t)multiprocessors * RESIDENT;
  int32_t size = 1;
  while (size < MAX_CLUSTER && 2 * size * (int64_t)batch.batch_size <= resident &&
         size * THREADS * pack < batch.vocab_size) {
    size *= 2;
  }
  return size;
}

template <class Probability>
__global__ void __launch_bounds__(THREADS, RESIDENT) kernel(Batch batch, int32_t cluster_size) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  // A block may write to another one's shared memory once that one has started: announce it now,
  // and wait for the others only when there is something to send.
  auto started = cluster.barrier_arrive();
  Shared& shared = shared_memory<Shared>();
  const int32_t b = (int32_t)blockIdx.x / cluster_size, part = (int32_t)cluster.block_rank();
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;
  const int32_t count = cluster_size * WARPS, mine = part * WARPS + warp;

  const Walk walk = walk_drafts<Probability>(batch, b, lane);
  Row<Probability> row = row_to_sample<Probability>(batch, b, walk);
  const Piece piece = piece_of_row<Probability>(row.size, mine, count);

  cluster.barrier_wait(static_cast<decltype(started)&&>(started));
  Choice choice{-1, 0, 0};
  for (int32_t round = 0; walk.verdict != Verdict::invalid; ++round) {
    int64_t* totals = shared.piece_total[round];
    const int64_t total = sum_piece(row, piece, lane);
    if (lane < cluster_size) *cluster.map_shared_rank(&totals[mine], lane) = total;
    cluster.sync();
    choice = choose_piece(batch, b, walk.n, totals, count, lane);
    if (choice.total != 0 || !row.is_residual()) break;
    row.q = nullptr;  // the residual is empty: sample from p
    row.certain = -1;
  }
  if (mine != choice.piece) return;  // piece 0 if there is no token
  const int64_t token = choice.total > 0 ? find_token(row, piece, choice.rest, lane) : -1;
  write_result_with_warp(batch, b, walk.n, token, lane);
#endif
}

cudaError_t launch(const Batch& batch, void*, cudaStream_t stream) {
  int device = 0, major = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (major < 9) return cudaErrorNotSupported;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);

  const int32_t size = cluster_size(batch, multiprocessors);
  auto config = launch_config((int64_t)batch.batch_size * size, THREADS, stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = (uint32_t)size;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return with_probability_type(batch, [&](auto probability) {
    const auto function = kernel<decltype(probability)>;
    if (size > 8) {
      const cudaError_t allowed = cudaFuncSetAttribute(
          (const void*)function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (allowed != cudaSuccess) return allowed;
    }
    return cudaLaunchKernelEx(&config, function, batch, size);
  });
}

}  // namespace rsk::cluster
