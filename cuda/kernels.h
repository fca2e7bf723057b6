// The entry points that the binding calls: plain pointers in, nothing of PyTorch.
#pragma once

#include "specification.h"

#if defined(RSK_CUDA)
#include <cuda_runtime.h>
#endif

namespace rsk {

// The fused CPU kernel, on requests [begin, end).
void fused_cpu(const Batch& batch, int32_t begin, int32_t end);

#if defined(RSK_CUDA)
// One launch each, on the given stream; the order is that of rsk.KERNELS.
cudaError_t block_per_sequence(const Batch& batch, cudaStream_t stream);
#endif

}  // namespace rsk
