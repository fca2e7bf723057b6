// The laws of the two rows that a team has in hand, p's and q's, and what they cost: two passes over
// what is in shared memory without filters, and three light ones with top-k.
#pragma once

#include <cuda_runtime.h>

#include "selection.h"
#include "short_list.h"

namespace rsk {

struct TeamMemory {
  Letters letters;
  Candidates candidates;
};

// What all threads know after the first exchange.
struct Extent {
  Two<int32_t> maximum;  // orders of the rows' maxima
  Two<int32_t> bound;    // of their k-th largest logits, if there is a top-k
  Two<int32_t> largest;  // orders of the largest that the thread itself holds
  bool is_over;          // some block of the team has seen that the position is not reached
};

constexpr int32_t OVER = 0x7FFFFFFF;  // no logit's order

// A row comes in as two groups of copies, if it is long, so that measure() can begin with the first.
struct Groups {
  int32_t of_row, half;  // in tiles

  __device__ explicit Groups(int32_t tiles_held)
      : of_row(tiles_held >= 4 ? 2 : 1),
        half(of_row == 2 ? (tiles_held + 1) / 2 : tiles_held) {}

  __device__ bool is_first(int32_t group) const { return of_row == 1 || group % 2 == 0; }
  __device__ bool is_last(int32_t group) const { return of_row == 1 || group % 2 == 1; }
  __device__ int32_t row(int32_t group) const { return of_row == 1 ? group : group / 2; }
};

// Begin to bring the rows on chip: p's, and q's if it is wanted.
template <class Logit>
__device__ void begin_rows(const Two<LogitRow<Logit>>& rows, bool wants_q) {
  const Groups groups(rows.p.tiles_held);
#pragma unroll 1
  for (int32_t i = 0; i < (wants_q ? 2 : 1) * groups.of_row; ++i) {
    rows.of(groups.row(i)).begin_copies(groups.is_first(i) ? 0 : groups.half,
                                        groups.is_last(i) ? rows.p.tiles_held : groups.half);
  }
}

// The first pass, while the rows come in. Where more was begun than is wanted now, this waits for
// all of it.
template <class Logit>
__device__ Extent measure(Team& team, TeamMemory& memory, const Two<LogitRow<Logit>>& rows,
                          bool wants_q, int32_t top_k, bool is_over) {
  Two<int32_t> largest{LEAST_ORDER, LEAST_ORDER};
  if (!is_over) {
    const Groups groups(rows.p.tiles_held);
    const int32_t count = (wants_q ? 2 : 1) * groups.of_row;
    Largest<Logit> of_row;
#pragma unroll 1
    for (int32_t i = 0; i < count; ++i) {
      switch (count - i) {
        case 4: wait_for_copies<3>(); break;
        case 3: wait_for_copies<2>(); break;
        case 2: wait_for_copies<1>(); break;
        default: wait_for_copies<0>();
      }
      const LogitRow<Logit> row = rows.of(groups.row(i));
      if (groups.is_first(i)) of_row = Largest<Logit>();
      add_largest(row, groups.is_first(i) ? 0 : groups.half,
                  groups.is_last(i) ? row.tiles : groups.half, of_row);
      if (groups.is_last(i)) largest.set(groups.row(i), order_of(of_row.value()));
    }
  } else {
    largest.p = OVER;
  }
  if (team.exchanges == 0) wait_for_cluster();
  const int64_t of_warp =
      letter_of({largest_over_warp(largest.p), largest_over_warp(largest.q)});
  Extent extent{};
  if (top_k > 0) {
    find_bounds(team, memory.candidates, largest, top_k);
    const auto& bound = memory.candidates.bound;
    // The least of some numbers is the largest of their complements.
    int64_t numbers[3] = {of_warp, letter_of({bound[0][0], bound[1][0]}),
                          letter_of({~bound[0][1], ~bound[1][1]})};
    exchange<LargestOfEach>(team, memory.letters, numbers);
    const Two<int32_t> of_some = two_of(numbers[1]), of_each = two_of(numbers[2]);
    extent.maximum = two_of(numbers[0]);
    extent.bound = {max(of_some.p, ~of_each.p), max(of_some.q, ~of_each.q)};
  } else {
    int64_t numbers[1] = {of_warp};
    exchange<LargestOfEach>(team, memory.letters, numbers);
    extent.maximum = two_of(numbers[0]);
  }
  extent.largest = largest;
  extent.is_over = extent.maximum.p == OVER;
  return extent;
}

// The index of the first logit of a warp that equals the maximum; its complement, for LargestOfEach.
template <class Logit>
__device__ int32_t find_maximum(const LogitRow<Logit>& row, float maximum) {
  int32_t first = INT32_MAX;
#pragma unroll 1
  for (int32_t t = 0; t < row.tiles && first == INT32_MAX; ++t) {
    const auto pack = row.pack(t);
    if (largest_of(pack) != maximum) continue;
    for_each(pack, [&](float x, int32_t j) {
      if (x == maximum) first = min(first, row.start(t) + j);
    });
  }
  return largest_over_warp(~first);
}

template <class Logit>
__device__ Two<RowLaw> greedy_laws(Team& team, TeamMemory& memory,
                                   const Two<LogitRow<Logit>>& rows, Two<RowLaw> laws) {
  Two<int32_t> found;
#pragma unroll 1
  for (int32_t r = 0; r < 2; ++r) {
    found.set(r, is_invalid(laws.of(r)) ? 0 : find_maximum(rows.of(r), laws.of(r).maximum));
  }
  int64_t numbers[1] = {letter_of(found)};
  exchange<LargestOfEach>(team, memory.letters, numbers);
  found = two_of(numbers[0]);
  if (!is_invalid(laws.p)) laws.p = greedy_law(laws.p.maximum, ~found.p);
  if (!is_invalid(laws.q)) laws.q = greedy_law(laws.q.maximum, ~found.q);
  return laws;
}

// The weight that a law keeps, over the team.
template <class Logit>
__device__ int64_t kept_by_team(Team& team, TeamMemory& memory, const LogitRow<Logit>& row,
                                const RowLaw& law, float min_p) {
  int64_t total[1] = {sum_kept(row, law, min_p)};
  exchange<Sum>(team, memory.letters, total);
  return total[0];
}

// Send the candidates of an interval to one block and hear what it found.
template <class Logit>
__device__ Decision find_threshold(Team& team, TeamMemory& memory, const LogitRow<Logit>& row,
                                   const RowLaw& law, const Interval& at, Gathering list,
                                   const Question& question) {
  int64_t count[1] = {0};
#pragma unroll 1
  for (int32_t i = 0; i < 2; ++i) {
    count[0] = (int64_t)count_from(row, in_order(i == 0 ? at.high : at.low)) - count[0];
  }
  exchange<Sum>(team, memory.letters, count);
  list.count = (int32_t)count[0];
  send_candidates(team, memory.candidates, row, list, shares_of_blocks(team, memory.letters, 0),
                  at.low, at.high);
  answer(team, memory.candidates, list, law, question);
  return receive(team, memory.candidates, list);
}

// The law of a row whose thresholds take passes of their own: first that of top-k, then that of
// top-p. `number` is what was summed in team_laws().
template <class Logit>
__device__ RowLaw narrowed_law(Team& team, TeamMemory& memory, const LogitRow<Logit>& row,
                               int32_t r, Two<uint32_t>& lists, RowLaw law, const Filter& filter,
                               bool has_top_k, int32_t bound, int64_t number) {
#pragma unroll 1
  for (int32_t filter_index = has_top_k ? 0 : 1; filter_index < 2; ++filter_index) {
    const bool is_top_k = filter_index == 0;
    if (!is_top_k && filter.top_p == 1.0f) break;
    const int64_t target = is_top_k ? filter.top_k : mass_to_keep(filter.top_p, number);
    Interval at = is_top_k ? whole_interval(law, bound, (int32_t)number)
                           : whole_interval(law, order_of(law.threshold), INT32_MAX);
    narrow_until_short(team, memory.letters, row, law, !is_top_k, target, at);
    if (at.is_one_value()) {
      law.threshold = in_order(at.low);
    } else {
      const Question question{is_top_k ? (int32_t)target - at.from_high : 0,
                              filter.top_p,
                              filter.min_p,
                              is_top_k ? -1 : number,
                              at.mass_from_high,
                              at.is_complete()};
      const Gathering list{r, 0, lists.of(r)};
      lists.set(r, list.phase + 1);
      const Decision found = find_threshold(team, memory, row, law, at, list, question);
      law.threshold = found.threshold;
      law.normalizer = found.normalizer;
      if (found.normalizer > 0.0f) return law;
    }
    const bool is_last = !is_top_k || filter.top_p == 1.0f;
    number = kept_by_team(team, memory, row, law, is_last ? filter.min_p : 0.0f);
  }
  law.normalizer = normalizer_of(number);
  return law;
}

// From the maxima to the laws. `scale`: of the temperature, if that is not 0. `lists`: how many lists
// of either row were gathered so far. `is_listed` becomes whether all that p's law keeps is in the
// short list of block 0.
template <class Logit>
__device__ Two<RowLaw> team_laws(Team& team, TeamMemory& memory, const Two<LogitRow<Logit>>& rows,
                                 bool wants_q, const Extent& extent, const Filter& filter,
                                 float scale, Two<uint32_t>& lists, bool& is_listed) {
  is_listed = false;
  Two<RowLaw> laws{invalid_law(), invalid_law()};
  const float p_maximum = in_order(extent.maximum.p), q_maximum = in_order(extent.maximum.q);
  const Two<bool> wanted{is_finite(p_maximum), wants_q && is_finite(q_maximum)};
  if (wanted.p) laws.p = {p_maximum, scale, in_order(LEAST_ORDER), 0.0f};
  if (wanted.q) laws.q = {q_maximum, scale, in_order(LEAST_ORDER), 0.0f};
  if (!wanted.p && !wanted.q) return laws;
  if (filter.temperature == 0.0f) return greedy_laws(team, memory, rows, laws);

  const Two<bool> has_top_k{filter.top_k > 0 && filter.top_k < rows.p.size,
                            filter.top_k > 0 && filter.top_k < rows.q.size};
  const Two<bool> listed{wanted.p && has_top_k.p, wanted.q && has_top_k.q};
  Two<bool> open = wanted;  // rows without a law
  if (listed.p || listed.q) {
#pragma unroll 1
    for (int32_t r = 0; r < 2; ++r) {
      if (!listed.of(r)) continue;
      send_short_list(team, memory.candidates, rows.of(r), r, extent.bound.of(r),
                      extent.largest.of(r));
    }
    announce_short_lists(team, memory.candidates, listed);
#pragma unroll 1
    for (int32_t r = 0; r < 2; ++r) {
      if (listed.of(r)) {
        answer_short_list(team, memory.candidates, r, lists.of(r), laws.of(r), filter);
      }
    }
#pragma unroll 1
    for (int32_t r = 0; r < 2; ++r) {
      if (!listed.of(r)) continue;
      const Gathering list{r, 0, lists.of(r)};
      lists.set(r, list.phase + 1);
      RowLaw law = laws.of(r);
      const Decision found = receive(team, memory.candidates, list);
      if (found.normalizer > 0.0f) {
        law.threshold = found.threshold;
        law.normalizer = found.normalizer;
        laws.set(r, law);
        open.set(r, false);
      }
    }
  }
  is_listed = listed.p && !open.p;
  if (!open.p && !open.q) return laws;

  // What tells most of either row: how many logits may be among the k largest, or the weight.
  const float min_p = filter.top_p < 1.0f ? 0.0f : filter.min_p;
  Two<int64_t> number{0, 0};
#pragma unroll 1
  for (int32_t r = 0; r < 2; ++r) {
    if (!open.of(r)) continue;
    const LogitRow<Logit> row = rows.of(r);
    int64_t of_warp;
    if (has_top_k.of(r)) {
      of_warp = count_from(row, in_order(extent.bound.of(r)));
    } else if (min_p > 0.0f) {
      of_warp = sum_kept(row, laws.of(r), min_p);
    } else {
      of_warp = Sum::over_warp(sum_weights(row, Curve(laws.of(r))));
    }
    number.set(r, of_warp);
  }
  int64_t numbers[2] = {number.p, number.q};
  exchange<Sum>(team, memory.letters, numbers);
  number = {numbers[0], numbers[1]};
#pragma unroll 1
  for (int32_t r = 0; r < 2; ++r) {
    if (!open.of(r)) continue;
    RowLaw law = laws.of(r);
    if (has_top_k.of(r) || filter.top_p < 1.0f) {
      law = narrowed_law(team, memory, rows.of(r), r, lists, law, filter, has_top_k.of(r),
                         extent.bound.of(r), number.of(r));
    } else {
      law.normalizer = normalizer_of(number.of(r));
    }
    laws.set(r, law);
  }
  return laws;
}

}  // namespace rsk
