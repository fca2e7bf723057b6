// What arrives in a block's shared memory, in the emulator: see arrivals.h and cuda_runtime.h.
#pragma once

#include <cuda_runtime.h>

namespace rsk {

struct Arrivals {
  int64_t missing;           // bytes
  int32_t senders, pending;  // all, and those that have not announced this phase's bytes
  uint32_t phase;            // the first that has not ended
};

typedef char* PlaceInShared;

inline PlaceInShared place_in_shared(int32_t i) {
  return emulator::current().block->dynamic_memory.data() + 16 * (ptrdiff_t)i;
}
inline PlaceInShared places_on(PlaceInShared place, int32_t count) {
  return place + 16 * (ptrdiff_t)count;
}
inline char* checked(PlaceInShared place) {
  auto& memory = emulator::current().block->dynamic_memory;
  if (place < memory.data() || place + 16 > memory.data() + memory.size()) {
    throw "a place is not in shared memory";
  }
  return place;
}
inline void load_place(PlaceInShared place, uint32_t (&words)[4]) {
  memcpy(words, checked(place), 16);
}
template <class Part>
void load_part_of_place(PlaceInShared place, int32_t i, Part& part) {
  memcpy(&part, checked(place) + i * (ptrdiff_t)sizeof(Part), sizeof(Part));
}
inline void store_place(PlaceInShared place, const uint32_t (&words)[4]) {
  memcpy(checked(place), words, 16);
}

// ------------------------------------------------------------------- words from other blocks

inline void end_phase_if_complete(Arrivals& arrivals) {
  if (arrivals.pending != 0 || arrivals.missing != 0) return;
  arrivals.pending = arrivals.senders;
  ++arrivals.phase;
}

inline void open_arrivals(Arrivals& arrivals, int32_t senders = 1) {
  arrivals = {0, senders, senders, 0};
}

inline void expect_bytes(Arrivals& arrivals, int32_t bytes) {
  if (arrivals.pending == 0) throw "the bytes of a phase were announced too often";
  arrivals.missing += bytes;
  --arrivals.pending;
  end_phase_if_complete(arrivals);
}

// The same place in the shared memory of another block.
template <class T>
T& in_block(T& place, int32_t rank) {
  emulator::Block& block = *emulator::current().block;
  emulator::Block& other = emulator::current().cluster->blocks.at((size_t)rank);
  for (auto& [type, memory] : block.shared) {
    const ptrdiff_t offset = (char*)&place - memory.data();
    if (offset < 0 || offset >= (ptrdiff_t)memory.size()) continue;
    return *(T*)(other.shared_memory(type, memory.size()) + offset);
  }
  throw "a word was sent to a place that is not in shared memory";
}

inline void check_present(int32_t rank) {
  if (emulator::current().cluster->blocks.at((size_t)rank).barrier.expected == 0) {
    throw "a word was sent to a block that has returned";
  }
}

inline void expect_bytes(Arrivals& arrivals, int32_t to, int32_t bytes) {
  check_present(to);
  expect_bytes(in_block(arrivals, to), bytes);
}

template <class Word>
void send_word(Word& place, Arrivals& arrivals, int32_t to, Word word) {
  check_present(to);
  in_block(place, to) = word;
  Arrivals& theirs = in_block(arrivals, to);
  theirs.missing -= (int64_t)sizeof(Word);
  end_phase_if_complete(theirs);
}

inline void wait_for_bytes(Arrivals& arrivals, uint32_t phase) {
  emulator::hand_over();
  while (arrivals.phase == phase) emulator::hand_over();
}

inline void announce_to_cluster() {
  emulator::current().announced = emulator::current().cluster->barrier.arrive();
}
inline void wait_for_cluster() {
  emulator::hand_over();
  emulator::wait(emulator::current().cluster->barrier, emulator::current().announced);
}

inline int32_t rank_of_block() { return (int32_t)emulator::current().block->rank_in_cluster; }

// ------------------------------------------------------------------ copies from global memory

// They are done as late as is allowed, so that a thread that does not wait reads garbage.
inline void begin_copy(PlaceInShared place, const void* from_global) {
  if ((uintptr_t)from_global % 16) throw "a copy is not aligned";
  auto& groups = emulator::current().copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({checked(place), from_global});
}

inline void end_group_of_copies() {
  auto& groups = emulator::current().copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();  // of those to come
}

template <int32_t LATER>
void wait_for_copies() {
  auto& groups = emulator::current().copies;
  while ((int32_t)groups.size() > LATER + 1) {  // the last one has not ended
    for (const emulator::Copy& copy : groups.front()) memcpy(copy.to, copy.from, 16);
    groups.erase(groups.begin());
  }
}

}  // namespace rsk
