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

// By all threads of a block, after a barrier: send its logits that are at least `bound`, an order, as
// is `largest`, of what the thread holds. Few lanes of a warp hold one that large; all look together
// at what these hold. A barrier must follow before announce_short_lists().
template <class Logit>
__device__ void send_short_list(const Team& team, Candidates& candidates,
                                const LogitRow<Logit>& row, int32_t r, int32_t bound,
                                int32_t largest) {
  constexpr int32_t PACK = LogitRow<Logit>::PACK;
  const int32_t leader = team.is_alone() ? 0 : r;
  const int32_t room = team.is_alone() ? MAX_SHORT : 2 * MAX_SHORT / team.size;
  int64_t* const part = candidates.brief.parts + room * (team.is_alone() ? r : team.rank);
  const float least = in_order(bound);
  uint32_t holders = __ballot_sync(ALL_LANES, largest >= bound);
#pragma unroll 1
  for (; holders; holders &= holders - 1) {
    const int32_t lane = __ffs(holders) - 1;
#pragma unroll 1
    for (int32_t e = team.lane; e < row.tiles * PACK; e += 32) {
      const float x = row.at(team, lane, e / PACK, e % PACK);
      if (!(x >= least)) continue;
      const int32_t i = (int32_t)atomicAdd(&candidates.filled[r], 1u);
      if (i >= room) continue;
      const int64_t letter =
          letter_of({(int32_t)bits_of(x), row.place_of(team, lane, e / PACK, e % PACK)});
      if (team.is_alone()) {
        part[i] = letter;
      } else {
        send_word(part[i], candidates.listed[r], leader, letter);
      }
    }
  }
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

// Each thread has one logit and adds up what is larger: what top-k keeps has less than k above it,
// and what top-p keeps of that has less than its share. By all threads of the leader, which are at
// least as many as the list is long.
__device__ inline Decision decide_by_ranks(const Team& team, Candidates& candidates, int32_t count,
                                           const RowLaw& law, const Filter& filter) {
  const int32_t own = (int32_t)threadIdx.x;
  ShortList& list = candidates.brief;
  const float x = own < count ? ShortList::at(list.logits, own) : in_order(LEAST_ORDER);
  const float e = relative_weight(x, law.maximum, law.scale);
  const int64_t weight = weight_of(e);  // 0 of minus infinity, which fills the list up
  if (own < ShortList::filled_up(count)) {
    ShortList::at(list.logits, own) = x;
    ShortList::at(list.weights, own) = weight;
  }
  __syncthreads();
  int32_t larger = 0;
  int64_t mass_larger = 0;
  if (32 * team.warp < count) {
#pragma unroll 1
    for (int32_t i = 0; i * ShortList::AT_ONCE < count; ++i) {
      const auto others = list.logits[i];
      const auto masses = list.weights[i];
#pragma unroll
      for (int32_t j = 0; j < ShortList::AT_ONCE; ++j) {
        if (others.of[j] > x) {
          ++larger;
          mass_larger += masses.of[j];
        }
      }
    }
  }
  bool stays = own < count && larger < (int32_t)filter.top_k;
  int64_t kept = sum_over_block(team, candidates.of_warps[0], stays ? weight : 0);
  if (filter.top_p < 1.0f) {
    stays = stays && mass_larger < mass_to_keep(filter.top_p, kept);
    kept = sum_over_block(team, candidates.of_warps[1], stays ? weight : 0);
  }
  // The least that stays: the largest of the complements, as no two blocks are asked.
  const int32_t order = largest_over_warp(stays ? ~order_of(x) : INT32_MIN);
  if (team.lane == 0) candidates.least_of_warps[team.warp] = order;
  if (filter.min_p > 0.0f) {
    const int64_t above = stays && e >= filter.min_p ? weight : 0;
    kept = sum_over_block(team, candidates.of_warps[2], above);
  } else {
    __syncthreads();
  }
  const int32_t least = largest_over_warp(
      team.lane < team.warps ? candidates.least_of_warps[team.lane] : INT32_MIN);
  return {in_order(~least), normalizer_of(kept)};
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
        ShortList::at(candidates.brief.logits, before + i) = float_of((uint32_t)letter.p);
        ShortList::at(candidates.brief.tokens, before + i) = letter.q;
      }
    }
    if (threadIdx.x == 0) candidates.ranked = count;
    __syncthreads();
    decision = decide_by_ranks(team, candidates, count, law, filter);
  }
  tell_decision(team, candidates, r, decision);
}

}  // namespace rsk
