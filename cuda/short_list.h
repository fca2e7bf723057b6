// The usual way through top-k: few logits are at least the bound that the first exchange gives
// (find_bounds() in selection.h). They go to the leader with their tokens; it ranks them, tells the
// row's law, and if the token is to be drawn from this row, it does that from the list, too.
//
// Nothing is counted before it is sent: each block has a part of the list for itself. If it finds
// more than that holds, the leader has no answer, and the row is narrowed as selection.h says.
#pragma once

#include <cuda_runtime.h>

#include "selection.h"

namespace rsk {

// By all threads of a block: send its logits that are at least `least`. A barrier must follow before
// announce_short_lists().
template <class Logit>
__device__ void send_short_list(const Team& team, Candidates& candidates,
                                const LogitRow<Logit>& row, int32_t r, float least) {
  const int32_t leader = team.is_alone() ? 0 : r;
  const int32_t room = team.is_alone() ? MAX_SHORT : 2 * MAX_SHORT / team.size;
  int64_t* const part = candidates.brief.parts + room * (team.is_alone() ? r : team.rank);
  for_each_pack_from(row, least, [&](const Pack<Logit>& pack, int32_t tile) {
    for_each(pack, [&](float x, int32_t j) {
      if (!(x >= least)) return;
      const int32_t i = (int32_t)atomicAdd(&candidates.filled[r], 1u);
      if (i >= room) return;
      const int64_t letter = letter_of({(int32_t)bits_of(x), row.start(tile) + j});
      if (team.is_alone()) {
        part[i] = letter;
      } else {
        send_word(part[i], candidates.listed[r], leader, letter);
      }
    });
  });
}

// By all threads of a block, after it has sent the lists of the rows that `sent` tells.
__device__ inline void announce_short_lists(const Team& team, Candidates& candidates,
                                            const Two<bool>& sent) {
  __syncthreads();
  const int32_t r = team.warp;
  if (r < 2 && sent.of(r) && team.lane == 0) {
    const int32_t count = (int32_t)candidates.filled[r];
    candidates.filled[r] = 0;
    if (team.is_alone()) {
      candidates.sent[r][0] = count;
    } else {
      const int32_t in_list = min(count, 2 * MAX_SHORT / team.size);
      expect_bytes(candidates.listed[r], r,
                   (int32_t)sizeof(int32_t) + in_list * (int32_t)sizeof(int64_t));
      send_word(candidates.sent[r][team.rank], candidates.listed[r], r, count);
    }
  }
  if (team.is_alone()) __syncthreads();
}

// Each thread has one logit and adds up what is larger, so that it knows whether it is the
// threshold. By all threads of the leader, which are at least as many as the list is long.
__device__ inline Decision decide_by_ranks(const Team& team, Candidates& candidates, int32_t count,
                                           const RowLaw& law, const Filter& filter) {
  constexpr int32_t AT_ONCE = 4;
  const int32_t own = (int32_t)threadIdx.x;
  const bool has_own = own < count;
  float* const list = candidates.brief.logits;
  int64_t* const weights = candidates.brief.weights;
  const float x = has_own ? list[own] : in_order(LEAST_ORDER);
  const float e = relative_weight(x, law.maximum, law.scale);
  const int64_t weight = weight_of(e);  // 0 of minus infinity, which fills the list up
  if (own < (count + AT_ONCE - 1) / AT_ONCE * AT_ONCE) {
    list[own] = x;
    weights[own] = weight;
  }
  __syncthreads();
  int32_t larger = 0, equal = 0;
  int64_t mass_larger = 0;
  if (32 * team.warp < count) {
#pragma unroll 1
    for (int32_t first = 0; first < count; first += AT_ONCE) {
#pragma unroll
      for (int32_t i = first; i < first + AT_ONCE; ++i) {
        const float other = list[i];
        const int64_t mass = weights[i];
        if (other > x) {
          ++larger;
          mass_larger += mass;
        }
        equal += other == x;
      }
    }
  }
  // Those that are equal, in value and so in weight, write the same.
  const int64_t mass_from_own = mass_larger + equal * weight;
  if (has_own && larger < (int32_t)filter.top_k && (int32_t)filter.top_k <= larger + equal) {
    candidates.threshold = x + 0.0f;  // one zero for both
    candidates.kept = mass_from_own;
  }
  __syncthreads();
  if (filter.top_p < 1.0f) {
    const int64_t mass = mass_to_keep(filter.top_p, candidates.kept);
    __syncthreads();
    if (has_own && mass_larger < mass && mass <= mass_from_own) {
      candidates.threshold = x + 0.0f;
      candidates.kept = mass_from_own;
    }
    __syncthreads();
  }
  Decision decision{candidates.threshold, 0.0f};
  int64_t kept = candidates.kept;
  if (filter.min_p > 0.0f) {
    const bool stays = has_own && x >= decision.threshold && e >= filter.min_p;
    kept = sum_over_block(team, candidates.of_warps[1], stays ? weight : 0);
  }
  decision.normalizer = normalizer_of(kept);
  return decision;
}

// The leader of row r answers; the normalizer is 0 if the list is too long.
__device__ inline void answer_short_list(const Team& team, Candidates& candidates, int32_t r,
                                         uint32_t phase, const RowLaw& law, const Filter& filter) {
  if (!team.is_alone()) {
    if (team.rank != r) return;
    wait_for_bytes(candidates.listed[r], phase);
  }
  const int32_t room = team.is_alone() ? MAX_SHORT : 2 * MAX_SHORT / team.size;
  const int32_t sent = team.lane < team.size ? candidates.sent[r][team.lane] : 0;
  const int32_t count = (int32_t)count_over_warp((uint32_t)sent);
  Decision decision{0.0f, 0.0f};
  if (!__any_sync(ALL_LANES, sent > room) && count <= min(MAX_SHORT, team.threads())) {
#pragma unroll 1
    for (int32_t block = team.warp; block < team.size; block += team.warps) {
      const int32_t before =
          (int32_t)count_over_warp((uint32_t)(team.lane < block ? sent : 0));
      const int32_t of_block = __shfl_sync(ALL_LANES, sent, block);
      const int64_t* const part =
          candidates.brief.parts + room * (team.is_alone() ? r : block);
#pragma unroll 1
      for (int32_t i = team.lane; i < of_block; i += 32) {
        const Two<int32_t> letter = two_of(part[i]);
        candidates.brief.logits[before + i] = float_of((uint32_t)letter.p);
        candidates.brief.tokens[before + i] = letter.q;
      }
    }
    if (threadIdx.x == 0) candidates.ranked = count;
    __syncthreads();
    decision = decide_by_ranks(team, candidates, count, law, filter);
  }
  tell_decision(team, candidates, r, decision);
}

}  // namespace rsk
