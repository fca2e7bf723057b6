// The blocks that work on the same rows: a thread-block cluster, or one block where the device has
// no clusters. They exchange numbers: each block reduces a value over its threads and tells it to
// all, and then every thread of the team knows all of them.
#pragma once

#include <cuda_runtime.h>

#include "arrivals.h"
#include "block.h"
#include "warp.h"

namespace rsk {

constexpr int32_t MAX_WARPS = 16;    // of a block
constexpr int32_t MAX_THREADS = 32 * MAX_WARPS;
constexpr int32_t MAX_TEAM = 16;     // blocks; more than 8 must be asked for
constexpr int32_t MAX_LETTERS = 4;   // numbers that are exchanged at once

// Two sets are used in turn. A block sends for an exchange only when it has everything of the one
// before, and by then all its threads have read the one before that.
struct Letters {
  Arrivals arrivals[2];
  int64_t of_blocks[2][MAX_LETTERS][MAX_TEAM];
  int64_t of_warps[2][MAX_LETTERS][MAX_WARPS];
};

// All threads of a team keep the same copy of this, but for the thread's own place.
struct Team {
  int32_t size, rank;  // of the block in it
  int32_t warps;       // of a block
  int32_t warp, lane;
  uint32_t exchanges;  // so far

  __device__ bool is_alone() const { return size == 1; }
  __device__ int32_t threads() const { return 32 * warps; }  // of a block
};

// By all threads at the start.
__device__ inline Team join_team(Letters& letters, int32_t size) {
  const Team team{size, size == 1 ? 0 : rank_of_block(), (int32_t)blockDim.x / 32,
                  (int32_t)threadIdx.x / 32, (int32_t)threadIdx.x % 32, 0};
  if (threadIdx.x == 0) {
    for (Arrivals& arrivals : letters.arrivals) open_arrivals(arrivals);
  }
  return team;
}

// Kernels that follow one another in a stream overlap where the device can do so: the next one may
// start once all blocks have called the second, and in the first it waits for what this one writes.
__device__ __forceinline__ void wait_for_kernel_before() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
__device__ __forceinline__ void let_next_kernel_start() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// One of each for the two rows that a team works on at once, p's and q's. An array would have to be
// in memory to be indexed.
template <class T>
struct Two {
  T p, q;
  __device__ T of(int32_t r) const { return r == 0 ? p : q; }
  __device__ void set(int32_t r, const T& value) {
    if (r == 0) {
      p = value;
    } else {
      q = value;
    }
  }
};

// ------------------------------------------------------------------------------- reductions

__device__ __forceinline__ int32_t largest_over_warp(int32_t x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(ALL_LANES, x);
#else
  for (int32_t step = 16; step > 0; step /= 2) {
    const int32_t other = __shfl_xor_sync(ALL_LANES, x, step);
    x = x > other ? x : other;
  }
  return x;
#endif
}

__device__ __forceinline__ uint32_t count_over_warp(uint32_t x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_add_sync(ALL_LANES, x);
#else
  for (int32_t step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
#endif
}

// The sum of x in [0, 2^63), which must be below that too.
struct Sum {
  static constexpr int64_t NOTHING = 0;
  __device__ static int64_t over_warp(int64_t x) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    constexpr uint32_t mask = (1u << 21) - 1;
    const uint32_t low = __reduce_add_sync(ALL_LANES, (uint32_t)x & mask);
    const uint32_t middle = __reduce_add_sync(ALL_LANES, (uint32_t)(x >> 21) & mask);
    const uint32_t high = __reduce_add_sync(ALL_LANES, (uint32_t)(x >> 42));
    return low + ((int64_t)middle << 21) + ((int64_t)high << 42);
#else
    for (int32_t step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
#endif
  }
};

// Two numbers in one letter, and the larger one of either.
__device__ __forceinline__ int64_t letter_of(Two<int32_t> two) {
  return (int64_t)((uint64_t)(uint32_t)two.p << 32 | (uint32_t)two.q);
}
__device__ __forceinline__ Two<int32_t> two_of(int64_t letter) {
  return {(int32_t)(letter >> 32), (int32_t)(uint32_t)letter};
}
struct LargestOfEach {
  static constexpr int64_t NOTHING = (int64_t)0x8000000080000000ull;
  __device__ static int64_t over_warp(int64_t x) {
    const Two<int32_t> two = two_of(x);
    return letter_of({largest_over_warp(two.p), largest_over_warp(two.q)});
  }
};

// --------------------------------------------------------------------------------- exchange

// After wait_for_cluster(), the first time. Reduce COUNT numbers over the team; a warp's lanes come
// with the same ones, its share. Until the exchange after the next, letters.of_blocks and of_warps
// of this set hold the blocks' and this block's warps' shares.
template <class Reduction, int32_t COUNT>
__device__ void exchange(Team& team, Letters& letters, int64_t (&numbers)[COUNT]) {
  static_assert(COUNT <= MAX_LETTERS);
  const int32_t set = (int32_t)(team.exchanges & 1);
  if (team.lane == 0) {
#pragma unroll
    for (int32_t i = 0; i < COUNT; ++i) letters.of_warps[set][i][team.warp] = numbers[i];
  }
  __syncthreads();
  if (team.warp == 0) {
    if (team.lane == 0 && !team.is_alone()) {
      expect_bytes(letters.arrivals[set], COUNT * team.size * (int32_t)sizeof(int64_t));
    }
#pragma unroll
    for (int32_t i = 0; i < COUNT; ++i) {
      const int64_t share =
          team.lane < team.warps ? letters.of_warps[set][i][team.lane] : Reduction::NOTHING;
      const int64_t of_block = Reduction::over_warp(share);
      int64_t& place = letters.of_blocks[set][i][team.rank];
      if (team.is_alone()) {
        if (team.lane == 0) place = of_block;
      } else if (team.lane < team.size) {
        send_word(place, letters.arrivals[set], team.lane, of_block);
      }
    }
  }
  if (team.is_alone()) {
    __syncthreads();
  } else {
    wait_for_bytes(letters.arrivals[set], team.exchanges / 2);
  }
#pragma unroll
  for (int32_t i = 0; i < COUNT; ++i) {
    const int64_t share =
        team.lane < team.size ? letters.of_blocks[set][i][team.lane] : Reduction::NOTHING;
    numbers[i] = Reduction::over_warp(share);
  }
  ++team.exchanges;
}

// What the blocks, or this block's warps, sent in the last exchange.
__device__ __forceinline__ const int64_t* shares_of_blocks(const Team& team, const Letters& letters,
                                                           int32_t i) {
  return letters.of_blocks[(team.exchanges - 1) & 1][i];
}
__device__ __forceinline__ const int64_t* shares_of_warps(const Team& team, const Letters& letters,
                                                          int32_t i) {
  return letters.of_warps[(team.exchanges - 1) & 1][i];
}

}  // namespace rsk
