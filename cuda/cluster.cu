// Step 5: the blocks of a request form a thread-block cluster (compute capability 9.0 and above).
//
// A cluster's blocks do run at once, on neighbouring multiprocessors, and can write to each other's
// shared memory. Each block sends its total to every other one (mailbox.h); then all know all of
// them, and the warp that owns the token's piece finishes the request. There is no workspace, no
// memset, no atomic, and global memory is written only with the result.
//
// A kernel this short spends a good part of its time on starting. So it allows the next one in the
// stream to start early, as far as it can without reading what this one writes, and does the same
// itself (programmatic dependent launch).
#include "block.h"
#include "kernels.h"
#include "launch.h"
#include "mailbox.h"
#include "piece.h"

namespace rsk::cluster {

// Below, the kernel is empty: it must compile, and nobody launches it.
#if defined(__CUDA_ARCH__)
constexpr bool HAS_CLUSTERS = runs_on(KernelName::cluster, __CUDA_ARCH__ / 10);
#else
constexpr bool HAS_CLUSTERS = true;
#endif

// For the residual's totals, and for p's should the residual be empty. Nothing is used twice: when
// the letters are there, some warps of this block may still be reading.
template <int32_t WARPS>
struct Shared {
  int64_t warp_total[2][WARPS];
  Mailbox mailboxes[2];
};

template <class Probability, int32_t WARPS>
__device__ __forceinline__ void decide(const Batch& batch, int32_t cluster_size, Cut cut) {
  Shared<WARPS>& shared = shared_memory<Shared<WARPS>>();
  const int32_t b = (int32_t)index_of_cluster(), part = (int32_t)rank_in_cluster();
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;
  const int32_t mine = part * WARPS + warp;
  if (threadIdx.x == 0) {
    for (Mailbox& mailbox : shared.mailboxes) open_mailbox(mailbox, cluster_size);
  }
  announce_mailboxes();
  cudaGridDependencySynchronize();  // for what the kernel before has written

  const Walk walk = walk_drafts<Probability>(batch, b, lane);
  // The next kernel may be launched, to wait above. Not before this: its blocks would take their
  // places while ours still come, and some multiprocessors would get more of ours than others.
  cudaTriggerProgrammaticLaunchCompletion();
  if (walk.verdict == Verdict::invalid) {  // all blocks of the request agree
    wait_for_mailboxes();
    if (mine == 0) write_result_with_warp(batch, b, walk.n, -1, lane);
    return;
  }
  PackedRow<Probability> row = row_to_sample<Probability>(batch, b, walk);
  Piece piece = piece_of_row(row.size, mine, cut);

  Tile<Probability> tile;
  Totals warps, blocks;
  uint64_t word;
  for (int32_t round = 0;; ++round) {
    Mailbox& mailbox = shared.mailboxes[round];
    // region letters
    const int64_t sum = sum_piece(row, piece, tile, lane);
    if (lane == 0) shared.warp_total[round][warp] = sum;
    __syncthreads();
    warps = add_totals<WARPS>(shared.warp_total[round], WARPS, lane);
    if (round == 0) wait_for_mailboxes();
    if (warp == 0 && lane < cluster_size) send(mailbox, lane, part, warps.all);
    word = sample_word(batch, b, walk.n);  // while the letters are on their way
    wait_for_letters(mailbox);
    blocks = add_totals<MAX_CLUSTER>(mailbox.letters, cluster_size, lane);
    // endregion
    if (blocks.all != 0 || !row.is_residual()) break;
    row.draft = Draft::none;  // the residual is empty: sample from p
  }
  int64_t token = -1;  // nothing to sample from, or not finite
  bool is_writer = mine == 0;
  if (blocks.all > 0) {
    int64_t rest = threshold(word, blocks.all);
    is_writer = part == blocks.choose(rest) && warp == warps.choose(rest);
    if (is_writer) token = find_token(row, piece, tile, rest, lane);
  }
  if (is_writer) write_result_with_warp(batch, b, walk.n, token, lane);
}

template <class Probability, int32_t WARPS>
__global__ void __launch_bounds__(32 * WARPS, 32 / WARPS)  // blocks at once: up to 64 registers
    kernel(Batch batch, int32_t cluster_size, Cut cut) {
  if constexpr (HAS_CLUSTERS) {
    decide<Probability, WARPS>(batch, cluster_size, cut);
  }
}

// Blocks per request: as many as have a whole tile to read for each warp, and together at most four
// for each multiprocessor.
template <class Probability, int32_t WARPS>
int32_t cluster_size(const Batch& batch, const Device& device) {
  const int32_t of_a_block = CHUNKS * CHUNK_SIZE<Probability> * WARPS;
  const int32_t useful = (num_columns(batch) + of_a_block - 1) / of_a_block;
  const int32_t share = device.multiprocessors * 4 / batch.batch_size;
  const int32_t size = useful < share ? useful : share, most = device.largest_cluster();
  return size < 2 ? 2 : size < most ? size : most;
}

template <class Probability, int32_t WARPS>
cudaError_t launch(const Batch& batch, const Device& device, cudaStream_t stream) {
  const auto function = kernel<Probability, WARPS>;
  const int32_t size = cluster_size<Probability, WARPS>(batch, device);
  if (size > 8) {
    static thread_local int allowed_on = -1;  // the device
    if (allowed_on != device.id) {
      const cudaError_t error = cudaFuncSetAttribute(
          (const void*)function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      if (error != cudaSuccess) return error;
      allowed_on = device.id;
    }
  }
  auto config = launch_config((int64_t)batch.batch_size * size, 32 * WARPS, stream);
  cudaLaunchAttribute attributes[3]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = (uint32_t)size;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeClusterSchedulingPolicyPreference;
  attributes[1].val.clusterSchedulingPolicyPreference = cudaClusterSchedulingPolicyLoadBalancing;
  attributes[2].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[2].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 3;
  const Cut cut = cut_row<Probability>(num_columns(batch), size * WARPS);
  return cudaLaunchKernelEx(&config, function, batch, size, cut);
}

cudaError_t launch(const Batch& batch, void*, cudaStream_t stream) {
  Device device;
  const cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  if (!runs_on(KernelName::cluster, device.capability)) return cudaErrorNotSupported;
  return with_probability_type(batch, [&](auto probability) {
    using Probability = decltype(probability);
    // Small blocks are sooner together. Larger ones for a few rows that are so long that even the
    // largest cluster of small ones has more than a tile a warp to read.
    const int32_t most = device.largest_cluster();
    const bool is_long = batch.batch_size * most <= device.multiprocessors &&
                         num_columns(batch) > most * 4 * CHUNKS * CHUNK_SIZE<Probability>;
    return is_long ? launch<Probability, 8>(batch, device, stream)
                   : launch<Probability, 4>(batch, device, stream);
  });
}

const Kernel entry{launch, nullptr};

}  // namespace rsk::cluster
