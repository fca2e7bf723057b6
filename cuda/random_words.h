// Random numbers of a request: the same on every device, in every backend and in any order.
#pragma once

#include <stdint.h>

#include "host_device.h"

namespace rsk {

// SplitMix64 as a counter: the word of a decision depends on its request, position and purpose.
enum Stream : int32_t { COIN = 0, SAMPLE = 1, DRAFT = 2 };

RSK_FUNCTION uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

RSK_FUNCTION uint64_t random_word(uint64_t seed, uint64_t t, int32_t stream) {
  const uint64_t gamma = 0x9E3779B97F4A7C15ull;
  return mix(mix(seed + gamma) + gamma * (4 * t + (uint64_t)stream + 1));
}

}  // namespace rsk
