// Positions of one request that are judged side by side, by teams that do not wait for one another
// until the end: a team's token counts only if no team before it has stopped.
//
// Each team has a slot in global memory for each team before it, which writes there how it ended.
// Nobody sets the slots to zero first. What a team writes contains a number that no other launch
// has, so that nothing which the memory held before is mistaken for it, but with probability 2^-62;
// and as a captured graph repeats a launch with the same number, whoever has read a slot clears it.
#pragma once

#include <cuda_runtime.h>

#include "warp.h"

namespace rsk {

enum class Ending : uint32_t { unknown = 0, accepted = 1, stopped = 2 };

struct Succession {
  uint64_t* slots;  // of one request: the slots of team 1, those of team 2, ...
  uint64_t number;  // of the launch; its last two bits are 0
  int32_t index, count;  // of this team; of the teams of a request

  static __host__ __device__ int64_t slots_of(int64_t count) { return count * (count - 1) / 2; }

  __device__ volatile uint64_t* slot(int32_t reader, int32_t writer) const {
    return slots + slots_of(reader) + writer;
  }
  __device__ Ending ending_of(uint64_t value) const {
    const uint64_t difference = value - number;
    return difference == 1 || difference == 2 ? (Ending)difference : Ending::unknown;
  }

  // By all lanes of a warp: whether a team before is known to have stopped. Does not wait.
  __device__ bool is_over(int32_t lane) const {
    bool over = false;
#pragma unroll 1
    for (int32_t i = lane; i < index; i += 32) {
      over |= ending_of(*slot(index, i)) == Ending::stopped;
    }
    return __any_sync(ALL_LANES, over);
  }

  // By all lanes of a warp, once: tell the teams behind.
  __device__ void tell(Ending ending, int32_t lane) const {
#pragma unroll 1
    for (int32_t i = index + 1 + lane; i < count; i += 32) {
      *slot(i, index) = number + (uint64_t)ending;
    }
  }

  // What this lane's first slot holds now: asked for early, as it comes from memory.
  __device__ uint64_t glance(int32_t lane) const {
    return lane < index ? *slot(index, lane) : 0;
  }

  // By all lanes of one warp of the team, as the last one to read: whether all teams before have
  // accepted. Waits for them; they have smaller indices, so they are running or done. `seen`: by
  // glance().
  __device__ bool wait_for_those_before(int32_t lane, uint64_t seen) const {
    bool accepted = true;
#pragma unroll 1
    for (int32_t i = lane; i < index; i += 32) {
      volatile uint64_t* place = slot(index, i);
      Ending ending = ending_of(i < 32 ? seen : *place);
      while (ending == Ending::unknown) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
        __nanosleep(32);
#endif
        ending = ending_of(*place);
      }
      *place = 0;
      accepted &= ending == Ending::accepted;
    }
    return __all_sync(ALL_LANES, accepted);
  }
};

}  // namespace rsk
