// The last token of a request, from the logits of its rows: the weights max(p - q, 0), or p.
#pragma once

#include <cuda_runtime.h>

#include "selection.h"
#include "team_law.h"

namespace rsk {

// The weights of a position, and this thread's part in them.
template <class Logit>
struct LogitWeights {
  static constexpr int32_t PACK = LogitRow<Logit>::PACK;
  static constexpr int32_t NO_Q = -1, ROW_OF_Q = -2;

  LogitRow<Logit> p, q;
  Two<RowLaw> laws;
  float min_p;
  bool is_listed;   // all that p's law keeps is in the short list of block 0
  int32_t certain;  // the token at which q is 1, or NO_Q, or ROW_OF_Q

  __device__ bool has_q() const { return certain == ROW_OF_Q; }

  // Whether every logit has a weight, so that none need be tested.
  __device__ bool is_plain() const {
    const float all = in_order(LEAST_ORDER);
    return min_p == 0.0f && laws.p.threshold == all &&
           (!has_q() || (laws.q.threshold == all && !is_greedy(laws.q)));
  }

  __device__ float p_of(int32_t v) const {
    return v < p.size ? probability(laws.p, min_p, widen(p.x[v]), v) : 0.0f;
  }
  __device__ float q_of(int32_t v) const {
    if (!has_q()) return v == certain ? 1.0f : 0.0f;
    return v < q.size ? probability(laws.q, min_p, widen(q.x[v]), v) : 0.0f;
  }

  __device__ __forceinline__ int64_t sum_plain(int32_t tile, const Curve& of_p,
                                               const Curve& of_q) const {
    FixedPointSum sum;
    const auto in_p = p.pack(tile);
    if (has_q()) {
      const auto in_q = q.pack(tile);
#pragma unroll
      for (int32_t j = 0; j < PACK; ++j) {
        const float x = rounded_product(of_p.weight(in_p.at(j)), laws.p.normalizer);
        const float y = rounded_product(of_q.weight_or_zero(in_q.at(j)), laws.q.normalizer);
        sum.add(__saturatef(rounded_sum(x, -y)));
      }
    } else {
#pragma unroll
      for (int32_t j = 0; j < PACK; ++j) {
        sum.add(rounded_product(of_p.weight(in_p.at(j)), laws.p.normalizer));
      }
    }
    int64_t total = sum.total(PACK);
    const int32_t start = p.start(tile);
    if (start <= certain && certain < start + PACK && certain < p.end) {
      total -= fixed_point(p_of(certain));  // there q is 1
    }
    return total;
  }

  // Only where p is not 0 for certain.
  __device__ int64_t sum_kept(int32_t tile, float least) const {
    const auto in_p = p.pack(tile);
    if (!(largest_of(in_p) >= least)) return 0;
    int64_t total = 0;
    const int32_t start = p.start(tile);
    for_each(in_p, [&](float x, int32_t j) {
      if (!(x >= least) || start + j >= p.end) return;
      total += fixed_point(probability(laws.p, min_p, x, start + j) - q_of(start + j));
    });
    return total;
  }
};

// The token, within this warp's piece: the first whose running sum exceeds `rest`; and before, as
// long as `rest` is -1, the warp's sum and its stretches'. One loop for both, as its code is long.
template <class Logit>
__device__ __forceinline__ int64_t walk_tiles(const Team& team, const LogitWeights<Logit>& weights,
                                              int64_t rest, int64_t& of_stretch) {
  constexpr int32_t PACK = LogitRow<Logit>::PACK;
  const bool is_search = rest >= 0, is_plain = weights.is_plain();
  const Curve of_p(weights.laws.p), of_q(weights.laws.q);
  const float least = least_kept(weights.laws.p, weights.min_p);
  const int32_t stretch = (weights.p.tiles + 31) / 32;
  int32_t tile = 0;
  int64_t sum = 0;
  if (is_search) {
    const Totals stretches{running_sum(of_stretch, team.lane), 0};
    tile = stretches.choose(rest) * stretch;
  } else {
    of_stretch = 0;
  }
#pragma unroll 1
  for (; tile < weights.p.tiles; ++tile) {
    const int64_t own =
        is_plain ? weights.sum_plain(tile, of_p, of_q) : weights.sum_kept(tile, least);
    if (!is_search) {
      const int64_t total = sum_over_warp(own);
      sum += total;
      if ((uint32_t)(tile - team.lane * stretch) < (uint32_t)stretch) of_stretch += total;
      continue;
    }
    const Totals lanes{running_sum(own, team.lane), 0};
    if (!__any_sync(ALL_LANES, lanes.running > rest)) {
      rest -= __shfl_sync(ALL_LANES, lanes.running, 31);
      continue;
    }
    const int32_t lane = lanes.choose(rest);
    const int32_t start = __shfl_sync(ALL_LANES, weights.p.start(tile), lane);
    const int32_t v = start + team.lane;
    const bool counts = team.lane < PACK && v < weights.p.end;
    const int64_t weight = counts ? fixed_point(weights.p_of(v) - weights.q_of(v)) : 0;
    const int64_t running = running_sum<PACK>(weight, team.lane);
    return start + __ffs(__ballot_sync(ALL_LANES, counts && running > rest)) - 1;
  }
  return is_search ? -1 : sum;  // a search does not come to this: the sum exceeds `rest`
}

// The same, by block 0 alone, if all that p's law keeps is in its short list. The list has no order,
// so each thread adds up the weights of the tokens before its own.
template <class Logit>
__device__ int32_t sample_from_list(const Team& team, Candidates& candidates,
                                    LogitWeights<Logit>& weights, uint64_t word) {
  if (team.rank != 0) return -1;
  ShortList& list = candidates.brief;
  const int32_t count = candidates.ranked, own = (int32_t)threadIdx.x;
  const bool has_own = own < count;
  const float x = has_own ? ShortList::at(list.logits, own) : 0.0f;
  const int32_t v = has_own ? ShortList::at(list.tokens, own) : 0;
  for (;;) {
    int64_t weight = 0;
    if (has_own) {
      const float p = probability(weights.laws.p, weights.min_p, x, v);
      if (p > 0.0f) weight = fixed_point(p - weights.q_of(v));
    }
    if (own < ShortList::filled_up(count)) ShortList::at(list.weights, own) = weight;
    const int64_t total = sum_over_block(team, candidates.of_warps[0], weight);
    if (total > 0 || weights.certain == weights.NO_Q) {
      int64_t before = 0;
#pragma unroll 1
      for (int32_t i = 0; i * ShortList::AT_ONCE < count; ++i) {
        const auto others = list.weights[i];
        const auto tokens = list.tokens[i];
#pragma unroll
        for (int32_t j = 0; j < ShortList::AT_ONCE; ++j) {
          if (tokens.of[j] < v) before += others.of[j];
        }
      }
      const int64_t rest = threshold(word, total);
      const uint32_t found =
          __ballot_sync(ALL_LANES, before <= rest && rest < before + weight);
      return found ? __shfl_sync(ALL_LANES, v, __ffs(found) - 1) : -1;
    }
    weights.certain = weights.NO_Q;  // the residual is empty: sample from p
    __syncthreads();
  }
}

// By the whole team. Returns the token to the lanes of one warp, and -1 to all others.
template <class Logit>
__device__ int32_t sample_with_team(Team& team, Letters& letters, LogitWeights<Logit>& weights,
                                    uint64_t word) {
  int64_t rest = -1, of_stretch = 0;
  for (;;) {
    const int64_t found = walk_tiles(team, weights, rest, of_stretch);
    if (rest >= 0) return (int32_t)found;
    int64_t numbers[1] = {found};
    exchange<Sum>(team, letters, numbers);
    if (numbers[0] == 0 && weights.certain != weights.NO_Q) {
      weights.certain = weights.NO_Q;  // the residual is empty: sample from p
      continue;
    }
    rest = threshold(word, numbers[0]);
    const Totals blocks =
        add_totals<MAX_TEAM>(shares_of_blocks(team, letters, 0), team.size, team.lane);
    if (blocks.choose(rest) != team.rank) return -1;
    const Totals warps =
        add_totals<MAX_WARPS>(shares_of_warps(team, letters, 0), team.warps, team.lane);
    if (warps.choose(rest) != team.warp) return -1;
  }
}

}  // namespace rsk
