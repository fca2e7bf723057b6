// The mailboxes of a cluster's blocks in the emulator: see mailbox.h and cuda_runtime.h.
#pragma once

#include <cuda_runtime.h>

namespace rsk {

struct Mailbox {
  emulator::Barrier arrivals;
  int64_t letters[MAX_CLUSTER];
};

inline uint32_t rank_in_cluster() { return emulator::current().block->rank_in_cluster; }
inline uint32_t index_of_cluster() {
  return blockIdx.x / (uint32_t)emulator::current().cluster->blocks.size();
}

inline void open_mailbox(Mailbox& mailbox, int32_t senders) {
  mailbox.arrivals = {};
  mailbox.arrivals.expected = senders;
}

inline void announce_mailboxes() {
  emulator::current().announced = emulator::current().cluster->barrier.arrive();
}
inline void wait_for_mailboxes() {
  emulator::hand_over();
  emulator::wait(emulator::current().cluster->barrier, emulator::current().announced);
}

inline void send(Mailbox& mailbox, int32_t to, int32_t from, int64_t letter) {
  // Our mailbox's place in the shared memory of the other block.
  emulator::Block& block = *emulator::current().block;
  emulator::Block& other = emulator::current().cluster->blocks.at((size_t)to);
  if (other.barrier.expected == 0) throw "a letter was sent to a block that has returned";
  for (auto& [type, memory] : block.shared) {
    const ptrdiff_t offset = (char*)&mailbox - memory.data();
    if (offset < 0 || offset >= (ptrdiff_t)memory.size()) continue;
    auto& theirs = *(Mailbox*)(other.shared_memory(type, memory.size()) + offset);
    theirs.letters[from] = letter;
    theirs.arrivals.arrive();
    return;
  }
  throw "a letter was sent from a mailbox that is not in shared memory";
}

inline void wait_for_letters(Mailbox& mailbox) { emulator::wait(mailbox.arrivals, 0); }

}  // namespace rsk
