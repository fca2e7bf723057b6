// The fused sampler on the GPU: the kernel that suits the batch.
#include "kernels.h"
#include "launch.h"

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

// Where the device has clusters, they serve every batch. Else a batch that fills the GPU takes one
// block per request, and a smaller one is split.
int32_t best_kernel(const Batch& batch) {
  Device device;
  current_device(device);
  if (device.major >= 9) return 3;
  return is_large(batch, device) ? 1 : 2;
}

}  // namespace rsk
