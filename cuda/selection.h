// The thresholds of top-k and top-p, exact, without sorting a row.
//
// Both ask for the largest t such that what is at least t has a certain count, or a certain weight.
// The interval that t lies in is narrowed, by counting or weighing at three pivots a pass, until few
// logits are in it; these go to one block, the leader, which sorts them. Most often no pass is needed:
// the largest logits of the single threads give a bound below which the k-th largest of all cannot
// lie, and hardly more than k logits are above it (short_list.h).
#pragma once

#include <cuda_runtime.h>

#include "logit_row.h"
#include "row_law.h"
#include "team.h"

namespace rsk {

constexpr int32_t MAX_CANDIDATES = 1024;  // that the leader sorts
constexpr int32_t MAX_SHORT = 256;        // that it ranks, with their tokens

// A list as the blocks send it, each a part, and as the leader ranks it: AT_ONCE at a time, so it is
// filled up to a multiple of that.
struct alignas(16) ShortList {
  static constexpr int32_t AT_ONCE = 8;
  template <class T>
  struct alignas(16) Some {
    T of[AT_ONCE];
  };

  int64_t parts[2 * MAX_SHORT];  // logits and their tokens
  Some<float> logits[MAX_SHORT / AT_ONCE];
  Some<int32_t> tokens[MAX_SHORT / AT_ONCE];
  Some<int64_t> weights[MAX_SHORT / AT_ONCE];

  template <class T>
  __device__ static T& at(Some<T>* some, int32_t i) {
    return some[i / AT_ONCE].of[i % AT_ONCE];
  }
  __device__ static int32_t filled_up(int32_t count) {
    return (count + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
  }
};

// Of the two rows that a team works on at once.
struct Candidates {
  union {
    float list[2][MAX_CANDIDATES];
    ShortList brief;
    int16_t largest[2][MAX_THREADS];  // of each thread, the upper half of its order: before the list
  };
  Arrivals listed[2], decided[2];
  int64_t decision[2];
  uint32_t filled[2];                // by this block, of its part of the list
  int32_t sent[2][MAX_TEAM];         // by the blocks, for a short list
  int32_t ranked;                    // logits in this block's short list
  int32_t bound[2][2];
  int64_t of_warps[3][MAX_WARPS];
  int32_t least_of_warps[MAX_WARPS];  // complements of orders
  int32_t count, first;
};

__device__ inline void open_candidates(Candidates& candidates, int32_t team_size) {
  if (threadIdx.x != 0) return;
  for (int32_t r = 0; r < 2; ++r) {
    open_arrivals(candidates.listed[r], team_size);
    open_arrivals(candidates.decided[r]);
    candidates.filled[r] = 0;
  }
}

// ------------------------------------------------------------------------- a bound for top-k

// By a warp: the n-th largest of the upper halves of the threads' orders; LEAST_ORDER if they are
// fewer. Bit by bit, from the highest in which they differ. Code that runs once is slow to fetch, so
// this is a loop of few instructions.
__device__ inline int32_t nth_largest(const Team& team, const int16_t (&values)[MAX_THREADS],
                                      int32_t n) {
  constexpr int32_t AT_ONCE = 4;  // warps; a block has a multiple of these
  uint32_t mine[MAX_WARPS], highest = 0, lowest = 0xFFFF;
#pragma unroll
  for (int32_t first = 0; first < MAX_WARPS; first += AT_ONCE) {
    if (first >= team.warps) break;
#pragma unroll
    for (int32_t i = first; i < first + AT_ONCE; ++i) {
      mine[i] = (uint32_t)(values[32 * i + team.lane] + 0x8000);
      highest = max(highest, mine[i]);
      lowest = min(lowest, mine[i]);
    }
  }
  highest = (uint32_t)largest_over_warp((int32_t)highest);
  lowest = ~(uint32_t)largest_over_warp((int32_t)~lowest);
  uint32_t bit = 1;
  while (bit <= (highest ^ lowest)) bit *= 2;
  uint32_t found = highest & ~(bit - 1);
#pragma unroll 1
  for (bit /= 2; bit > 0; bit /= 2) {
    uint32_t count = 0;
#pragma unroll
    for (int32_t first = 0; first < MAX_WARPS; first += AT_ONCE) {
      if (first >= team.warps) break;
#pragma unroll
      for (int32_t i = first; i < first + AT_ONCE; ++i) count += mine[i] >= (found | bit);
    }
    if (count_over_warp(count) >= (uint32_t)n) found |= bit;
  }
  const int32_t order = (int32_t)((found - 0x8000) << 16);
  return order < LEAST_ORDER ? LEAST_ORDER : order;
}

// What a block can say of where the k-th largest logit of the row is: it has k that are at least
// bound[r][0]; and if each block has k / blocks that are at least its bound[r][1], then k are at
// least the least of these.
__device__ inline void find_bounds(const Team& team, Candidates& candidates,
                                   Two<int32_t> largest, int32_t top_k) {
  candidates.largest[0][threadIdx.x] = (int16_t)(largest.p >> 16);
  candidates.largest[1][threadIdx.x] = (int16_t)(largest.q >> 16);
  __syncthreads();
  if (team.warp < 4) {
    const int32_t r = team.warp / 2, which = team.warp % 2;
    const int32_t n = which == 0 ? top_k : (top_k + team.size - 1) / team.size;
    const int32_t order = n > team.threads()
                              ? LEAST_ORDER
                              : nth_largest(team, candidates.largest[r], n);
    if (team.lane == 0) candidates.bound[r][which] = order;
  }
  __syncthreads();
}

// ------------------------------------------------------------------------- counts and weights

// f(x) for the elements of a pack, in a loop that stays short: few packs come to this.
template <class Logit, class Function>
__device__ __forceinline__ void for_each(Pack<Logit> pack, const Function& f) {
#pragma unroll 1
  for (int32_t j = 0; j < PACK_SIZE<Logit>; ++j) f(pack.pop(), j);
}

// f(pack, tile) for the packs with a logit that is at least `least`. They are few, so several are
// looked at together.
template <class Logit, class Function>
__device__ __forceinline__ void for_each_pack_from(const LogitRow<Logit>& row, float least,
                                                   const Function& f) {
  constexpr int32_t AT_ONCE = 4;
#pragma unroll 1
  for (int32_t first = 0; first < row.tiles; first += AT_ONCE) {
    const int32_t last = min(first + AT_ONCE, row.tiles);
    Largest<Logit> largest;
    add_largest(row, first, last, largest);
    if (!(largest.value() >= least)) continue;
#pragma unroll 1
    for (int32_t t = first; t < last; ++t) {
      const auto pack = row.pack(t);
      if (largest_of(pack) >= least) f(pack, t);
    }
  }
}

// The logits of a warp that are at least `threshold`.
template <class Logit>
__device__ uint32_t count_from(const LogitRow<Logit>& row, float threshold) {
  uint32_t count = 0;
#pragma unroll 1
  for (int32_t t = 0; t < row.tiles; ++t) {
    const auto pack = row.pack(t);
    if (!(largest_of(pack) >= threshold)) continue;
#pragma unroll
    for (int32_t j = 0; j < LogitRow<Logit>::PACK; ++j) count += pack.at(j) >= threshold;
  }
  return count_over_warp(count);
}

// The least logit that min-p might keep: a little too low, so that it is exact to look at those from
// here on.
__device__ inline float bound_of_min_p(const RowLaw& law, float min_p) {
  if (!(min_p > 0.0f)) return in_order(LEAST_ORDER);
  const float exponent = (float)((int32_t)(bits_of(min_p) >> 23) - 127);  // at most log2(min_p)
  return law.maximum + (exponent - 0.5f) / law.scale;
}

// Below this, a logit's probability is 0.
__device__ inline float least_kept(const RowLaw& law, float min_p) {
  return fmaxf(law.threshold, bound_of_min_p(law, min_p));
}

// The weight of what the thresholds keep, of a warp.
template <class Logit>
__device__ int64_t sum_kept(const LogitRow<Logit>& row, const RowLaw& law, float min_p) {
  const float least = least_kept(law, min_p);
  int64_t sum = 0;
  for_each_pack_from(row, least, [&](const Pack<Logit>& pack, int32_t) {
    for_each(pack, [&](float x, int32_t) {
      const float e = relative_weight(x, law.maximum, law.scale);
      if (x >= law.threshold && e >= min_p) sum += weight_of(e);
    });
  });
  return Sum::over_warp(sum);
}

constexpr int32_t PIVOTS = 3;

struct Survey {
  int64_t counts;          // of what is at least each pivot, 21 bits each
  int64_t masses[PIVOTS];  // its weight
};

template <class Logit>
__device__ Survey survey(const LogitRow<Logit>& row, const RowLaw& law,
                         const float (&pivots)[PIVOTS]) {
  Survey found{};
#pragma unroll 1
  for (int32_t t = 0; t < row.tiles; ++t) {
    const auto pack = row.pack(t);
    if (!(largest_of(pack) >= pivots[PIVOTS - 1])) continue;
    for_each(pack, [&](float x, int32_t) {
      if (!(x >= pivots[PIVOTS - 1])) return;
      const int64_t weight = weight_of(relative_weight(x, law.maximum, law.scale));
#pragma unroll
      for (int32_t i = 0; i < PIVOTS; ++i) {
        if (!(x >= pivots[i])) continue;
        found.counts += (int64_t)1 << 21 * i;
        found.masses[i] += weight;
      }
    });
  }
  found.counts = Sum::over_warp(found.counts);
#pragma unroll
  for (int64_t& mass : found.masses) mass = Sum::over_warp(mass);
  return found;
}

// ------------------------------------------------------------------------------ the interval

// Where the threshold is: what is at least `low` reaches the target and what is at least `high`
// does not. Both as the order of a logit.
struct Interval {
  int32_t low, high;
  int32_t from_low, from_high;  // logits that are at least these
  int64_t mass_from_high;

  __device__ int32_t inside() const { return from_low - from_high; }
  __device__ bool is_one_value() const { return high - (int64_t)low == 1; }
  __device__ bool is_complete() const { return from_high == 0; }
  __device__ bool is_short() const { return inside() <= MAX_CANDIDATES; }
};

__device__ inline Interval whole_interval(const RowLaw& law, int32_t low, int32_t from_low) {
  return {low, order_of(law.maximum) + 1, from_low, 0, 0};
}

// Three pivots in the interval, the highest first. In turn at equal distance in value, which suits
// logits, and in order, which comes to an end.
__device__ inline void choose_pivots(const Interval& at, const RowLaw& law, bool by_mass,
                                     int32_t round,
                                     float (&pivots)[PIVOTS], int32_t (&orders)[PIVOTS]) {
  const float low = in_order(at.low), high = in_order(at.high);
#pragma unroll
  for (int32_t i = 0; i < PIVOTS; ++i) {
    int32_t order;
    if (by_mass && round == 0) {
      order = order_of(law.maximum - (i == 0 ? 5.0f : i == 1 ? 10.0f : 20.0f) / law.scale);
    } else if (round % 2 == 1 && is_finite(high - low)) {
      order = order_of(low + (high - low) * (0.75f - 0.25f * (float)i));
    } else {
      order = at.low + (int32_t)(((int64_t)at.high - at.low) * (PIVOTS - i) / (PIVOTS + 1));
    }
    order = order <= at.low ? at.low + 1 : order >= at.high ? at.high - 1 : order;
    orders[i] = order;
    pivots[i] = in_order(order);
  }
}

// One pass of the team over the row.
template <class Logit>
__device__ void narrow(Team& team, Letters& letters, const LogitRow<Logit>& row, const RowLaw& law,
                       bool by_mass, int64_t target, int32_t round, Interval& at) {
  float pivots[PIVOTS];
  int32_t orders[PIVOTS];
  choose_pivots(at, law, by_mass, round, pivots, orders);
  const Survey found = survey(row, law, pivots);
  int64_t numbers[1 + PIVOTS] = {found.counts, found.masses[0], found.masses[1], found.masses[2]};
  exchange<Sum>(team, letters, numbers);
  bool reached = false;
#pragma unroll
  for (int32_t i = 0; i < PIVOTS; ++i) {
    const int32_t count = (int32_t)(numbers[0] >> 21 * i) & ((1 << 21) - 1);
    if (reached) continue;
    reached = (by_mass ? numbers[1 + i] : count) >= target;
    if (reached) {
      at.low = orders[i];
      at.from_low = count;
    } else {
      at.high = orders[i];
      at.from_high = count;
      at.mass_from_high = numbers[1 + i];
    }
  }
  if (at.from_low <= MAX_CANDIDATES) at = whole_interval(law, at.low, at.from_low);
}

template <class Logit>
__device__ void narrow_until_short(Team& team, Letters& letters, const LogitRow<Logit>& row,
                                   const RowLaw& law, bool by_mass, int64_t target, Interval& at) {
#pragma unroll 1
  for (int32_t round = 0; !at.is_short() && !at.is_one_value(); ++round) {
    narrow(team, letters, row, law, by_mass, target, round, at);
  }
}

// --------------------------------------------------------------------------------- the leader

// What the leader is to find in the list of what is inside an interval.
struct Question {
  int32_t nth;         // top-k: the threshold is the nth largest of the list; 0: no top-k
  float top_p, min_p;
  int64_t total;       // of what top-k keeps; -1: the weight of the list from the nth on
  int64_t mass_above;  // of what is above the interval
  bool is_complete;    // nothing is above: then the normaliser can be found too
};

// threshold as in RowLaw; normalizer: 0 if it could not be found.
struct Decision {
  float threshold, normalizer;
};

// Descending. By all threads of a block.
__device__ inline void sort(float* list, int32_t count, int32_t threads) {
  const int32_t own = (int32_t)threadIdx.x;
  int32_t size = 2;
  while (size < count) size *= 2;
#pragma unroll 1
  for (int32_t i = count + own; i < size; i += threads) {
    list[i] = in_order(LEAST_ORDER);
  }
  __syncthreads();
#pragma unroll 1
  for (int32_t run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int32_t step = run / 2; step > 0; step /= 2) {
#pragma unroll 1
      for (int32_t i = own; i < size / 2; i += threads) {
        const int32_t a = 2 * i - (i & (step - 1)), b = a + step;
        const float x = list[a], y = list[b];
        if ((x < y) == ((a & run) == 0)) {
          list[a] = y;
          list[b] = x;
        }
      }
      __syncthreads();
    }
  }
}

// How many of the sorted list are at least `threshold`, which is one of them.
__device__ inline int32_t count_in_list(const Team& team, Candidates& candidates, const float* list,
                                        int32_t count, float threshold) {
#pragma unroll 1
  for (int32_t i = (int32_t)threadIdx.x; i < count; i += team.threads()) {
    if (list[i] >= threshold && (i + 1 == count || !(list[i + 1] >= threshold))) {
      candidates.count = i + 1;
    }
  }
  __syncthreads();
  return candidates.count;
}

// A barrier is between this and what `of_warps` held before.
__device__ inline int64_t sum_over_block(const Team& team, int64_t (&of_warps)[MAX_WARPS],
                                         int64_t x) {
  x = Sum::over_warp(x);
  if (team.lane == 0) of_warps[team.warp] = x;
  __syncthreads();
  return Sum::over_warp(team.lane < team.warps ? of_warps[team.lane] : 0);
}

// By all threads of the leading block, on the sorted list.
__device__ inline Decision decide(const Team& team, Candidates& candidates, const float* list,
                                  int32_t count, const RowLaw& law, const Question& question) {
  // Each thread has some neighbours, as a rule one. Their weights are computed where they are needed.
  const int32_t each = (count + team.threads() - 1) / team.threads();
  const int32_t begin = (int32_t)threadIdx.x * each;
  const auto relative = [&](int32_t i) {
    return relative_weight(list[i], law.maximum, law.scale);
  };
  Decision decision{in_order(LEAST_ORDER), 0.0f};
  if (question.nth > 0) {
    decision.threshold = list[question.nth - 1];
    count = count_in_list(team, candidates, list, count, decision.threshold);
    if (!question.is_complete) return decision;
  }
  if (question.top_p < 1.0f) {
    const int32_t end = min(begin + each, count);
    int64_t own = 0;
#pragma unroll 1
    for (int32_t i = begin; i < end; ++i) own += weight_of(relative(i));
    const int64_t running = running_sum(own, team.lane);
    if (team.lane == 31) candidates.of_warps[0][team.warp] = running;
    if (threadIdx.x == 0) candidates.first = 0;  // so that it is in the list whatever comes
    __syncthreads();
    const int64_t share = team.lane < team.warps ? candidates.of_warps[0][team.lane] : 0;
    const int64_t before = Sum::over_warp(team.lane < team.warp ? share : 0) + running - own;
    const int64_t total = question.total >= 0 ? question.total : Sum::over_warp(share);
    const int64_t mass = mass_to_keep(question.top_p, total);
    int64_t sum = question.mass_above + before;
#pragma unroll 1
    for (int32_t i = begin; i < end; ++i) {
      const bool below = sum < mass;
      sum += weight_of(relative(i));
      if (below && sum >= mass) candidates.first = i;
    }
    __syncthreads();
    decision.threshold = list[candidates.first];
    if (!question.is_complete) return decision;
    count = count_in_list(team, candidates, list, count, decision.threshold);
  }
  int64_t kept = 0;
  const int32_t end = min(begin + each, count);
#pragma unroll 1
  for (int32_t i = begin; i < end; ++i) {
    const float e = relative(i);
    if (e >= question.min_p) kept += weight_of(e);
  }
  decision.normalizer = normalizer_of(sum_over_block(team, candidates.of_warps[1], kept));
  return decision;
}

// A list on its way: of row r, with `count` logits in the interval, of which the blocks have
// `shares`.
struct Gathering {
  int32_t r, count;
  uint32_t phase;
  __device__ int32_t leader(const Team& team) const { return team.is_alone() ? 0 : r; }
};

// Send what is in [low, high) of this block's part of the row to the leader.
template <class Logit>
__device__ void send_candidates(const Team& team, Candidates& candidates,
                                const LogitRow<Logit>& row, const Gathering& list,
                                const int64_t* shares, int32_t low, int32_t high) {
  const int32_t first = (int32_t)Sum::over_warp(team.lane < team.rank ? shares[team.lane] : 0);
  const float least = in_order(low), beyond = in_order(high);
  const int32_t leader = list.leader(team);
  if (threadIdx.x == 0 && !team.is_alone()) {
    expect_bytes(candidates.listed[list.r], leader,
                 (int32_t)shares[team.rank] * (int32_t)sizeof(float));
  }
#pragma unroll 1
  for (int32_t t = 0; t < row.tiles; ++t) {
    const auto pack = row.pack(t);
    if (!(largest_of(pack) >= least)) continue;
    for_each(pack, [&](float x, int32_t) {
      if (!(x >= least) || x >= beyond) return;
      const int32_t i = first + (int32_t)atomicAdd(&candidates.filled[list.r], 1u);
      float& place = candidates.list[list.r][i];
      if (team.is_alone()) {
        place = x;
      } else {
        send_word(place, candidates.listed[list.r], leader, x);
      }
    });
  }
  if (team.is_alone()) __syncthreads();
}

// By all threads of the leader: tell all blocks what it found.
__device__ inline void tell_decision(const Team& team, Candidates& candidates, int32_t r,
                                     const Decision& decision) {
  const int64_t letter =
      letter_of({(int32_t)bits_of(decision.threshold), (int32_t)bits_of(decision.normalizer)});
  __syncthreads();  // what the leader's threads share may be used again
  if (team.warp != 0) return;
  if (team.is_alone()) {
    if (team.lane == 0) candidates.decision[r] = letter;
  } else if (team.lane < team.size) {
    send_word(candidates.decision[r], candidates.decided[r], team.lane, letter);
  }
}

// The leader answers.
__device__ inline void answer(const Team& team, Candidates& candidates, const Gathering& list,
                              const RowLaw& law, const Question& question) {
  if (team.rank != list.leader(team)) return;
  if (!team.is_alone()) wait_for_bytes(candidates.listed[list.r], list.phase);
  float* logits = candidates.list[list.r];
  sort(logits, list.count, team.threads());
  tell_decision(team, candidates, list.r,
                decide(team, candidates, logits, list.count, law, question));
}

__device__ inline Decision receive(const Team& team, Candidates& candidates,
                                   const Gathering& list) {
  if (team.is_alone()) {
    __syncthreads();
  } else {
    if (threadIdx.x == 0) expect_bytes(candidates.decided[list.r], (int32_t)sizeof(int64_t));
    wait_for_bytes(candidates.decided[list.r], list.phase);
  }
  if (threadIdx.x == 0) candidates.filled[list.r] = 0;  // all of the list was sent
  const Two<int32_t> bits = two_of(candidates.decision[list.r]);
  return {float_of((uint32_t)bits.p), float_of((uint32_t)bits.q)};
}

}  // namespace rsk
