// The fused sampler on the GPU: the kernel that suits the batch.
#include "kernels.h"
#include "launch.h"

namespace rsk {

const Kernel& kernel_of(KernelName name) {
  static const Kernel* const kernels[] = {
#define RSK_KERNEL(name, ...) &name::entry,
#include "kernel_list.h"
#undef RSK_KERNEL
  };
  return *kernels[(int32_t)name];
}

// Where the device has clusters, they serve every batch. Else a batch that fills the GPU with one
// block per request takes that many, and for a smaller one rows are split.
KernelName best_kernel(const Batch& batch) {
  Device device;
  current_device(device);
  if (runs_on(KernelName::cluster, device.capability)) return KernelName::cluster;
  return batch.batch_size >= 2 * device.multiprocessors ? KernelName::loads_in_flight
                                                        : KernelName::split_vocabulary;
}

}  // namespace rsk
