// The memory roof on the CPU: reading in vector registers, on the threads that the caller has.
#include "roof.h"

#include "vectors.h"

namespace rsk::roof {
namespace {

inline void fetch(const uint32_t* words) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(words);
#else
  (void)words;
#endif
}

// Four vectors a step from each stream, so that several loads are under way in each.
template <int32_t STREAMS>
uint32_t read(const uint32_t* words, int64_t count, int32_t ahead) {
  constexpr int32_t STEP = 4 * WIDTH;
  constexpr int32_t LINE = 16;  // words of a cache line, of 64 bytes on most processors
  const int64_t stream = count / STREAMS / STEP * STEP;
  Ints sums[4] = {};
  for (int64_t i = 0; i < stream; i += STEP) {
    for (int32_t s = 0; s < STREAMS; ++s) {
      const uint32_t* here = words + s * stream + i;
      if (ahead) {
        for (int32_t j = 0; j < STEP; j += LINE) fetch(here + ahead / 4 + j);
      }
      for (int32_t j = 0; j < 4; ++j) sums[j] ^= load_bits(here + j * WIDTH);
    }
  }
  const Ints all = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]);
  uint32_t sum = (uint32_t)reduce<int32_t>(all, [](auto a, auto b) { return a ^ b; });
  for (int64_t i = STREAMS * stream; i < count; ++i) sum ^= words[i];
  return sum;
}

}  // namespace

void read_pieces(const uint32_t* words, int64_t count, int32_t pieces, int32_t streams,
                 int32_t ahead, int32_t begin, int32_t end, int32_t* sums) {
  for (int32_t piece = begin; piece < end; ++piece) {
    const int64_t first = count * piece / pieces, last = count * (piece + 1) / pieces;
    const auto read_it = streams == 4 ? read<4> : streams == 2 ? read<2> : read<1>;
    sums[piece] = (int32_t)read_it(words + first, last - first, ahead);
  }
}

}  // namespace rsk::roof
