// Thread-block clusters in the emulator: see cuda_runtime.h beside this file.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

struct cluster_group {
  struct arrival_token {
    uint64_t ticket;
  };

  static unsigned block_rank() { return emulator::current().block->rank_in_cluster; }
  static unsigned num_blocks() { return (unsigned)emulator::current().cluster->blocks.size(); }

  static arrival_token barrier_arrive() { return {emulator::current().cluster->barrier.arrive()}; }
  static void barrier_wait(arrival_token&& token) {
    emulator::hand_over();
    emulator::wait(emulator::current().cluster->barrier, token.ticket);
  }
  static void sync() { emulator::synchronize(emulator::current().cluster->barrier); }

  // The same place in the shared memory of another block.
  template <class T>
  static T* map_shared_rank(T* address, int rank) {
    emulator::Fiber& fiber = emulator::current();
    auto& blocks = fiber.cluster->blocks;
    for (auto& [type, memory] : fiber.block->shared) {
      const ptrdiff_t offset = (char*)address - memory.data();
      if (offset < 0 || offset >= (ptrdiff_t)memory.size()) continue;
      if (rank < 0 || rank >= (int)blocks.size()) break;
      return (T*)(blocks[(size_t)rank].shared_memory(type, memory.size()) + offset);
    }
    return nullptr;  // not shared memory, or no such block
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
