// How the blocks of a cluster tell each other one number: by mail, rather than at a meeting point.
//
// A barrier of the cluster would do, but what is written before it has to be made visible first,
// by a fence that waits for the whole GPU's memory. A letter carries its own signal: the mailbox
// counts the bytes that have arrived (mbarrier), and its owner waits for them and nothing else.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace rsk {

constexpr int32_t MAX_CLUSTER = 16;  // blocks; more than 8 must be asked for

}  // namespace rsk

#if !defined(__CUDACC__)
#include <emulated_mailbox.h>
#else

namespace rsk {

struct Mailbox {
  uint64_t arrivals;
  int64_t letters[MAX_CLUSTER];  // by the sender's rank
};

__device__ __forceinline__ uint32_t shared_address(const void* address) {
  return (uint32_t)__cvta_generic_to_shared(address);
}

__device__ __forceinline__ uint32_t rank_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ uint32_t index_of_cluster() {
  uint32_t index;
  asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}

// By one thread: expect a letter from each of `senders` blocks.
__device__ __forceinline__ void open_mailbox(Mailbox& mailbox, int32_t senders) {
  const uint32_t arrivals = shared_address(&mailbox.arrivals);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(arrivals) : "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrivals),
               "r"(senders * (int32_t)sizeof(int64_t))
               : "memory");
}

// By all threads, after their block's mailboxes are open; then wait_for_mailboxes() until those of
// all blocks are. Nothing may be sent before.
__device__ __forceinline__ void announce_mailboxes() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_mailboxes() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Send to the block of that rank; `mailbox` is our own one of the same name.
__device__ __forceinline__ void send(Mailbox& mailbox, int32_t to, int32_t from, int64_t letter) {
  uint32_t arrivals, place;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(arrivals)
               : "r"(shared_address(&mailbox.arrivals)), "r"(to));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(place)
               : "r"(shared_address(&mailbox.letters[from])), "r"(to));
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
                   place),
               "l"(letter), "r"(arrivals)
               : "memory");
}

// Wait until all letters are there.
__device__ __forceinline__ void wait_for_letters(Mailbox& mailbox) {
  const uint32_t arrivals = shared_address(&mailbox.arrivals);
  uint32_t complete = 0;
  while (!complete) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], 0;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(complete)
        : "r"(arrivals)
        : "memory");
  }
}

}  // namespace rsk

#endif
