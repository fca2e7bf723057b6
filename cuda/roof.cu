// The memory roof on a GPU: a kernel that reads, in packs of 16 bytes as the sampler does, and is
// launched as the sampler is. How many blocks, threads and loads in flight are best is for the
// caller to find out.
#include "roof.h"

#include "launch.h"

namespace rsk::roof {

struct alignas(16) Words {
  uint32_t word[4];
};

template <int32_t LOADS>
__global__ void kernel(const Words* packs, int64_t count, int32_t* sums) {
  const int64_t tile = (int64_t)LOADS * blockDim.x;
  uint32_t sum = 0;
  for (int64_t start = blockIdx.x * tile; start < count; start += gridDim.x * tile) {
    Words pack[LOADS];
    // No branch depends on what a load brings, so that all are issued before any is waited for.
#pragma unroll
    for (int32_t i = 0; i < LOADS; ++i) {
      const int64_t place = start + (int64_t)i * blockDim.x + threadIdx.x;
      pack[i] = {};
      if (place < count) pack[i] = packs[place];
    }
#pragma unroll
    for (int32_t i = 0; i < LOADS; ++i) {
      sum ^= pack[i].word[0] ^ pack[i].word[1] ^ pack[i].word[2] ^ pack[i].word[3];
    }
  }
  // Without a barrier: a block is done when its slowest warp is.
  for (int32_t step = 16; step > 0; step /= 2) sum ^= __shfl_xor_sync(0xFFFFFFFFu, sum, step);
  if (threadIdx.x % 32 == 0) {
    sums[(int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32] = (int32_t)sum;
  }
}

cudaError_t launch(const void* packs, int64_t count, int32_t blocks, int32_t threads,
                   int32_t loads, int32_t* sums, cudaStream_t stream) {
  const auto config = launch_config(blocks, threads, stream);
  const auto start = [&](auto* chosen) {
    return cudaLaunchKernelEx(&config, chosen, (const Words*)packs, count, sums);
  };
  switch (loads) {
    case 1: return start(kernel<1>);
    case 2: return start(kernel<2>);
    case 4: return start(kernel<4>);
    case 8: return start(kernel<8>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace rsk::roof
