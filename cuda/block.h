// What the threads of a block share.
#pragma once

#include <cuda_runtime.h>

namespace rsk {

#if defined(__CUDACC__)
// A block's shared memory as one struct. The emulator has a version of its own, because there
// several blocks of a cluster are alive at once.
template <class Storage>
__device__ __forceinline__ Storage& shared_memory() {
  __shared__ Storage storage;
  return storage;
}
#endif

}  // namespace rsk
