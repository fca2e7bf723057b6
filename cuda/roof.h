// The memory roof: reading, and nothing else. No sampler that reads as much is faster.
#pragma once

#include <stdint.h>

#if defined(RSK_CUDA)
#include <cuda_runtime.h>
#endif

namespace rsk::roof {

// Of 32-bit words, in pieces [0, pieces) of about the same length: the bits that differ (xor) go to
// sums[piece]. A piece is read at `streams` (1, 2 or 4) places at once; `ahead` bytes in front of
// each the cache is told to fetch, unless it is 0.
void read_pieces(const uint32_t* words, int64_t count, int32_t pieces, int32_t streams,
                 int32_t ahead, int32_t begin, int32_t end, int32_t* sums);

#if defined(RSK_CUDA)
// The same in one launch: `loads` (1, 2, 4 or 8) packs of 16 bytes are asked for by each thread
// before it waits. A warp writes one sum: sums[blocks * threads / 32].
cudaError_t launch(const void* packs, int64_t count, int32_t blocks, int32_t threads,
                   int32_t loads, int32_t* sums, cudaStream_t stream);
#endif

}  // namespace rsk::roof
