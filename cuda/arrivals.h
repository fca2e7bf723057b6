// What arrives in a block's shared memory while its threads do something else: words from the other
// blocks of the cluster, and copies from global memory.
//
// A word that is sent to another block carries its own signal: the receiver counts the bytes that
// have come (mbarrier) and waits for as many as it expects, and for nothing else. Sender and
// receiver name a place by the sender's address of it: all blocks lay out their memory alike.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#if !defined(__CUDACC__)
#include <emulated_arrivals.h>
#else

namespace rsk {

struct Arrivals {
  uint64_t state;
};

__device__ __forceinline__ uint32_t address_in_shared(const void* address) {
  return (uint32_t)__cvta_generic_to_shared(address);
}

// The dynamic part of the block's shared memory, in places of 16 bytes. A thread that keeps the
// address of a place computes it once; through a pointer the compiler would do so at each use.
typedef uint32_t PlaceInShared;

__device__ __forceinline__ PlaceInShared place_in_shared(int32_t i) {
  extern __shared__ uint4 memory[];
  return address_in_shared(&memory[i]);
}
__device__ __forceinline__ PlaceInShared places_on(PlaceInShared place, int32_t count) {
  return place + 16 * count;
}
__device__ __forceinline__ void load_place(PlaceInShared place, uint32_t (&words)[4]) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(place));
}
// Part i of those that a place has.
template <class Part>
__device__ __forceinline__ void load_part_of_place(PlaceInShared place, int32_t i, Part& part) {
  static_assert(sizeof(Part) == 2 || sizeof(Part) == 4, "a part has 2 or 4 bytes");
  const uint32_t address = place + (uint32_t)(i * (int32_t)sizeof(Part));
  if constexpr (sizeof(Part) == 2) {
    uint16_t bits;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(address));
    memcpy(&part, &bits, sizeof bits);
  } else {
    uint32_t bits;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(address));
    memcpy(&part, &bits, sizeof bits);
  }
}
__device__ __forceinline__ void store_place(PlaceInShared place, const uint32_t (&words)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(place), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// ------------------------------------------------------------------- words from other blocks

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// By one thread, before anything can arrive. In each phase `senders` threads announce bytes.
__device__ __forceinline__ void open_arrivals(Arrivals& arrivals, int32_t senders = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address_in_shared(&arrivals)),
               "r"(senders)
               : "memory");
}

// By one thread of each sender, once for each phase: the phase ends when all have announced their
// bytes and these have come. They may come first.
__device__ __forceinline__ void expect_bytes(Arrivals& arrivals, int32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   address_in_shared(&arrivals)),
               "r"(bytes)
               : "memory");
}

// The same, of the arrivals in another block of the cluster, or in this one.
__device__ __forceinline__ void expect_bytes(Arrivals& arrivals, int32_t to, int32_t bytes) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(address_in_shared(&arrivals)), "r"(to));
  asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(
                   there),
               "r"(bytes)
               : "memory");
}

// Write a word of 4 or 8 bytes into the memory of another block of the cluster, or of this one.
template <class Word>
__device__ __forceinline__ void send_word(Word& place, Arrivals& arrivals, int32_t to, Word word) {
  static_assert(sizeof(Word) == 4 || sizeof(Word) == 8, "a word has 4 or 8 bytes");
  uint32_t there, counter;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(address_in_shared(&place)), "r"(to));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(counter)
               : "r"(address_in_shared(&arrivals)), "r"(to));
  if constexpr (sizeof(Word) == 8) {
    int64_t bits;
    memcpy(&bits, &word, 8);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
                     there),
                 "l"(bits), "r"(counter)
                 : "memory");
  } else {
    uint32_t bits;
    memcpy(&bits, &word, 4);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                     there),
                 "r"(bits), "r"(counter)
                 : "memory");
  }
}

// Wait for the end of a phase; they are counted from 0.
__device__ __forceinline__ void wait_for_bytes(Arrivals& arrivals, uint32_t phase) {
  uint32_t complete = 0;
  while (!complete) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(complete)
        : "r"(address_in_shared(&arrivals)), "r"(phase & 1)
        : "memory");
  }
}

// By all threads, after their block's arrivals are open; then wait_for_cluster() until those of all
// blocks are. Nothing may be sent before.
__device__ __forceinline__ void announce_to_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ int32_t rank_of_block() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return (int32_t)rank;
}

#else  // every block is alone

__device__ __forceinline__ void open_arrivals(Arrivals&, int32_t = 1) {}
__device__ __forceinline__ void expect_bytes(Arrivals&, int32_t) {}
__device__ __forceinline__ void expect_bytes(Arrivals&, int32_t, int32_t) {}
template <class Word>
__device__ __forceinline__ void send_word(Word&, Arrivals&, int32_t, Word) {}
__device__ __forceinline__ void wait_for_bytes(Arrivals&, uint32_t) {}
__device__ __forceinline__ void announce_to_cluster() {}
__device__ __forceinline__ void wait_for_cluster() {}
__device__ __forceinline__ int32_t rank_of_block() { return 0; }

#endif

// ------------------------------------------------------------------ copies from global memory

// Begin to copy 16 bytes, from an address that is a multiple of 16. Only the thread that began a copy
// knows when it is done.
__device__ __forceinline__ void begin_copy(PlaceInShared place, const void* from_global) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from_global)
               : "memory");
#else
  const uint4 words = *(const uint4*)from_global;
  store_place(place, {words.x, words.y, words.z, words.w});
#endif
}

// What this thread has begun since the last call is one group.
__device__ __forceinline__ void end_group_of_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until all groups of this thread but the last LATER ones are there.
template <int32_t LATER>
__device__ __forceinline__ void wait_for_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#endif
}

}  // namespace rsk

#endif
