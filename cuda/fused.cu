// The fused sampler on the GPU: the kernel that suits the batch.
#include "kernels.h"

namespace rsk {

Kernel kernel_at(int32_t index) {
  constexpr Kernel kernels[NUM_KERNELS] = {
      {thread_per_sequence::launch, nullptr},
      {block_per_sequence::launch, nullptr},
      {split_vocabulary::launch, split_vocabulary::workspace_bytes},
      {cluster::launch, nullptr},
  };
  return kernels[index];
}

// A batch that fills the GPU with one block per request needs no more of them. A smaller one is
// split: by a cluster where the device has clusters, else through a workspace.
int32_t best_kernel(const Batch& batch) {
  int device = 0, major = 0, multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (batch.batch_size >= 2 * multiprocessors) return 1;
  return major >= 9 ? 3 : 2;
}

}  // namespace rsk
