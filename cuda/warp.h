// What the 32 threads of a warp do together without waiting at a barrier: they hand values to one
// another. All lanes call each of these together, and all of them get the result.
#pragma once

#include <cuda_runtime.h>

#include "row.h"

namespace rsk {

constexpr uint32_t ALL_LANES = 0xFFFFFFFFu;

// The sum of x in [0, 2^54) over the warp.
__device__ __forceinline__ int64_t sum_over_warp(int64_t x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const uint32_t low = __reduce_add_sync(ALL_LANES, (uint32_t)x & ((1u << 27) - 1));
  const uint32_t high = __reduce_add_sync(ALL_LANES, (uint32_t)(x >> 27));  // does not overflow
  return low + ((int64_t)high << 27);
#else
  for (int32_t step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
#endif
}

// The sum of x over this lane and the ones below it; from lane COUNT on, x is 0.
template <int32_t COUNT = 32>
__device__ __forceinline__ int64_t running_sum(int64_t x, int32_t lane) {
#pragma unroll
  for (int32_t step = 1; step < COUNT; step *= 2) {
    const int64_t below = __shfl_up_sync(ALL_LANES, x, step);
    if (lane >= step) x += below;
  }
  return x;
}

// Each lane judges one draft token; a ballot finds the first that is not accepted.
template <class Probability>
__device__ Walk walk_drafts(const Batch& batch, int32_t b, int32_t lane) {
  for (int32_t start = 0; start < batch.spec_len; start += 32) {
    const int32_t k = start + lane;
    const Verdict verdict =
        k < batch.spec_len ? judge<Probability>(batch, b, k) : Verdict::ended;
    const uint32_t stopped = __ballot_sync(ALL_LANES, verdict != Verdict::accepted);
    if (stopped) {
      const int32_t first = __ffs(stopped) - 1;
      return {start + first, (Verdict)__shfl_sync(ALL_LANES, (int32_t)verdict, first)};
    }
  }
  return {batch.spec_len, Verdict::ended};
}

// The totals of up to COUNT parts of a row, one a lane.
struct Totals {
  int64_t running;  // over the parts up to this lane's
  int64_t all;      // 0: no weight; -1: a probability is not finite

  // The part that the token is in: the first whose running sum exceeds `rest`, which becomes the
  // threshold within that part.
  __device__ int32_t choose(int64_t& rest) const {
    const int32_t part = __ffs(__ballot_sync(ALL_LANES, running > rest)) - 1;
    const int64_t before = __shfl_sync(ALL_LANES, running, part - 1);
    if (part > 0) rest -= before;
    return part;
  }
};

template <int32_t COUNT>
__device__ Totals add_totals(const volatile int64_t* totals, int32_t count, int32_t lane) {
  const int64_t own = lane < count ? totals[lane] : 0;
  const bool finite = __all_sync(ALL_LANES, own >= 0);
  const int64_t running = running_sum<COUNT>(own, lane);
  return {running, finite ? __shfl_sync(ALL_LANES, running, COUNT - 1) : -1};
}

// token < 0 marks an invalid request.
__device__ inline void write_result_with_warp(const Batch& batch, int32_t b, int32_t n,
                                              int64_t token, int32_t lane) {
  int64_t* row = batch.tokens + (int64_t)b * (batch.spec_len + 1);
#pragma unroll 1  // of a kernel this short, the code itself is slow to fetch
  for (int32_t k = lane; k <= batch.spec_len; k += 32) {
    row[k] = output_token(batch, b, k, n, token);
  }
  if (lane == 0 && batch.num_accepted) batch.num_accepted[b] = token < 0 ? -1 : n;
}

}  // namespace rsk
