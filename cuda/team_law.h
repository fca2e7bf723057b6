// The laws of the two rows that a team has in hand, p's and q's, and what they cost: two passes over
// what is in shared memory without filters, and three light ones with top-k.
#pragma once

#include <cuda_runtime.h>

#include "selection.h"

namespace rsk {

struct TeamMemory {
  Letters letters;
  Candidates candidates;
};

// A pair of rows, and which of them are wanted: their laws are to be found.
template <class Logit>
struct RowPair {
  LogitRow<Logit> p, q;
  bool wants_q;

  __device__ LogitRow<Logit> row(int32_t r) const { return r == 0 ? p : q; }
};

struct LawPair {
  RowLaw p, q;
  __device__ RowLaw law(int32_t r) const { return r == 0 ? p : q; }
  __device__ void set(int32_t r, const RowLaw& law) {
    if (r == 0) p = law; else q = law;
  }
};

// What all threads know after the first exchange.
struct Extent {
  Pair maximum;  // orders of the rows' maxima
  Pair bound;    // of their k-th largest logits, if there is a top-k
  bool is_over;  // some block of the team has seen that the position is not reached
};

constexpr int32_t OVER = 0x7FFFFFFF;  // no logit's order

// The first pass, while the rows come in.
template <class Logit>
__device__ Extent measure(Team& team, TeamMemory& memory, const RowPair<Logit>& rows,
                          int64_t top_k, bool is_over) {
  float largest[2] = {in_order(LEAST_ORDER), in_order(LEAST_ORDER)};
  if (!is_over) {
    const int32_t held = rows.p.tiles_held, half = (held + 1) / 2;
    rows.p.begin_copies(0, half);
    rows.p.begin_copies(half, held);
    if (rows.wants_q) {
      rows.q.begin_copies(0, half);
      rows.q.begin_copies(half, held);
    } else {  // as many groups
      end_group_of_copies();
      end_group_of_copies();
    }
    Largest<Logit> of_p, of_q;
    wait_for_copies<3>();
    add_largest(rows.p, 0, half, of_p);
    wait_for_copies<2>();
    add_largest(rows.p, half, rows.p.tiles, of_p);
    if (rows.wants_q) {
      wait_for_copies<1>();
      add_largest(rows.q, 0, half, of_q);
      wait_for_copies<0>();
      add_largest(rows.q, half, rows.q.tiles, of_q);
    }
    largest[0] = of_p.value();
    largest[1] = of_q.value();
  }
  int64_t numbers[3];
  const Pair of_warp{largest_over_warp(is_over ? OVER : order_of(largest[0])),
                     largest_over_warp(order_of(largest[1]))};
  numbers[0] = letter_of(of_warp);
  Extent extent{};
  if (top_k > 0) {
    find_bounds(team, memory.candidates, largest, top_k);
    const auto& bound = memory.candidates.bound;
    numbers[1] = letter_of({bound[0][0], bound[1][0]});
    numbers[2] = letter_of({~bound[0][1], ~bound[1][1]});  // the largest is the least
    exchange<LargestPair>(team, memory.letters, numbers);
    const Pair of_some = pair_of(numbers[1]), of_each = pair_of(numbers[2]);
    extent.bound = {max(of_some.first, ~of_each.first), max(of_some.second, ~of_each.second)};
  } else {
    int64_t one[1] = {numbers[0]};
    exchange<LargestPair>(team, memory.letters, one);
    numbers[0] = one[0];
  }
  extent.maximum = pair_of(numbers[0]);
  extent.is_over = extent.maximum.first == OVER;
  return extent;
}

// The index of the first logit that equals the maximum, of a warp; negated, for LargestPair.
template <class Logit>
__device__ int32_t find_maximum(const LogitRow<Logit>& row, float maximum) {
  int32_t first = INT32_MAX;
  for (int32_t t = 0; t < row.tiles && first == INT32_MAX; ++t) {
    const auto pack = row.pack(t);
    if (largest_of(pack) != maximum) continue;
    for_each(pack, [&](float x, int32_t j) {
      if (x == maximum) first = min(first, row.start(t) + j);
    });
  }
  return largest_over_warp(-first);
}

template <class Logit>
__device__ LawPair greedy_laws(Team& team, TeamMemory& memory, const RowPair<Logit>& rows,
                               LawPair laws) {
  int64_t numbers[1] = {
      letter_of({find_maximum(rows.p, laws.p.maximum),
                 rows.wants_q ? find_maximum(rows.q, laws.q.maximum) : -INT32_MAX})};
  exchange<LargestPair>(team, memory.letters, numbers);
  const Pair found = pair_of(numbers[0]);
  if (!is_invalid(laws.p)) laws.p = greedy_law(laws.p.maximum, -found.first);
  if (!is_invalid(laws.q)) laws.q = greedy_law(laws.q.maximum, -found.second);
  return laws;
}

// Send a list of candidates to one block and hear what it found.
template <class Logit>
__device__ Decision find_threshold(Team& team, TeamMemory& memory, const LogitRow<Logit>& row,
                                   const RowLaw& law, const Interval& at, Gathering list,
                                   const Question& question) {
  const auto count_from_low = (int64_t)count_from(row, in_order(at.low));
  int64_t count[1] = {count_from_low - (int64_t)count_from(row, in_order(at.high))};
  exchange<Sum>(team, memory.letters, count);
  list.count = (int32_t)count[0];
  send_candidates(team, memory.candidates, row, list, shares_of_blocks(team, memory.letters, 0),
                  at.low, at.high);
  answer(team, memory.candidates, list, law, question);
  return receive(team, memory.candidates, list);
}

// The law of a row whose thresholds take passes of their own. `number` is what was summed in
// team_laws().
template <class Logit>
__device__ RowLaw narrowed_law(Team& team, TeamMemory& memory, const LogitRow<Logit>& row,
                               int32_t r, uint32_t& phase, RowLaw law, const Filter& filter,
                               bool has_top_k, int32_t bound, int64_t number) {
  Interval at;
  if (has_top_k) {
    at = whole_interval(law, bound, (int32_t)number);
    narrow_until_short<false>(team, memory.letters, row, law, filter.top_k, at);
    if (at.is_one_value()) {
      law.threshold = in_order(at.low);
    } else {
      const Question question{(int32_t)filter.top_k - at.from_high, filter.top_p, filter.min_p, -1,
                              0, at.is_complete()};
      const Decision found =
          find_threshold(team, memory, row, law, at, Gathering{r, 0, phase++}, question);
      law.threshold = found.threshold;
      law.normalizer = found.normalizer;
      if (found.normalizer > 0.0f) return law;
    }
    int64_t total[1] = {sum_kept(row, law, filter.top_p < 1.0f ? 0.0f : filter.min_p)};
    exchange<Sum>(team, memory.letters, total);
    number = total[0];
  }
  if (filter.top_p < 1.0f) {
    at = whole_interval(law, order_of(law.threshold), INT32_MAX);
    const int64_t mass = mass_to_keep(filter.top_p, number);
    narrow_until_short<true>(team, memory.letters, row, law, mass, at);
    if (at.is_one_value()) {
      law.threshold = in_order(at.low);
    } else {
      const Question question{0,      filter.top_p,      filter.min_p,
                              number, at.mass_from_high, at.is_complete()};
      const Decision found =
          find_threshold(team, memory, row, law, at, Gathering{r, 0, phase++}, question);
      law.threshold = found.threshold;
      law.normalizer = found.normalizer;
      if (found.normalizer > 0.0f) return law;
    }
    int64_t total[1] = {sum_kept(row, law, filter.min_p)};
    exchange<Sum>(team, memory.letters, total);
    number = total[0];
  }
  law.normalizer = normalizer_of(number);
  return law;
}

// From the maxima to the laws. `phases`: how many lists of either row were gathered so far.
template <class Logit>
__device__ LawPair team_laws(Team& team, TeamMemory& memory, const RowPair<Logit>& rows,
                             const Extent& extent, const Filter& filter, uint32_t& lists_of_p,
                             uint32_t& lists_of_q) {
  LawPair laws{invalid_law(), invalid_law()};
  const float scale = filter.temperature == 0.0f ? 0.0f : scale_of(filter.temperature);
  bool wanted[2];
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    const float maximum = in_order(r == 0 ? extent.maximum.first : extent.maximum.second);
    wanted[r] = (r == 0 || rows.wants_q) && is_finite(maximum);
    if (wanted[r]) laws.set(r, {maximum, scale, in_order(LEAST_ORDER), 0.0f});
  }
  if (!wanted[0] && !wanted[1]) return laws;
  if (filter.temperature == 0.0f) return greedy_laws(team, memory, rows, laws);

  // What tells most of either row: how many logits may be among the k largest, or the weight.
  bool has_top_k[2];
  int64_t numbers[2];
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    const LogitRow<Logit>& row = r == 0 ? rows.p : rows.q;
    has_top_k[r] = filter.top_k > 0 && filter.top_k < row.size;
    const int32_t bound = r == 0 ? extent.bound.first : extent.bound.second;
    numbers[r] = !wanted[r]        ? 0
                 : has_top_k[r] ? (int64_t)count_from(row, in_order(bound))
                                : sum_kept(row, laws.law(r), filter.top_p < 1.0f ? 0.0f : filter.min_p);
  }
  exchange<Sum>(team, memory.letters, numbers);

  bool listed[2];
#pragma unroll
  for (int32_t r = 0; r < 2; ++r) {
    listed[r] = wanted[r] && has_top_k[r] && numbers[r] <= MAX_CANDIDATES;
    if (!listed[r]) continue;
    const LogitRow<Logit>& row = r == 0 ? rows.p : rows.q;
    const Gathering list{r, (int32_t)numbers[r], r == 0 ? lists_of_p : lists_of_q};
    const int32_t bound = r == 0 ? extent.bound.first : extent.bound.second;
    send_candidates(team, memory.candidates, row, list, shares_of_blocks(team, memory.letters, r),
                    bound, order_of(laws.law(r).maximum) + 1);
  }
#pragma unroll 1
  for (int32_t r = 0; r < 2; ++r) {
    if (!listed[r]) continue;
    const Gathering list{r, (int32_t)numbers[r], r == 0 ? lists_of_p : lists_of_q};
    answer(team, memory.candidates, list, laws.law(r),
           {(int32_t)filter.top_k, filter.top_p, filter.min_p, -1, 0, true});
  }
#pragma unroll 1
  for (int32_t r = 0; r < 2; ++r) {
    if (!wanted[r]) continue;
    uint32_t& lists = r == 0 ? lists_of_p : lists_of_q;
    RowLaw law = laws.law(r);
    if (listed[r]) {
      const Decision found = receive(team, memory.candidates, Gathering{r, 0, lists++});
      law.threshold = found.threshold;
      law.normalizer = found.normalizer;
    } else {
      law = narrowed_law(team, memory, rows.row(r), r, lists, law, filter, has_top_k[r],
                         r == 0 ? extent.bound.first : extent.bound.second, numbers[r]);
    }
    laws.set(r, law);
  }
  return laws;
}

}  // namespace rsk
