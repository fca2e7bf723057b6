// The fused sampler on the CPU: one pass over the one row (or row pair) that a token is sampled
// from, with early exit at the first rejection.
//
// A scalar loop over the row takes some twenty times longer; vectors.h says how integers are summed
// in vector registers.
#include <algorithm>

#include "kernels.h"
#include "unit_sum.h"
#include "vectors.h"

namespace rsk {
namespace {

// The fixed-point sum of a part's weights max(p - q, 0). `check` becomes NaN or infinite if a
// difference is.
template <bool has_q, class Target, class Draft>
int64_t sum_part(Row<Target> p, Row<Draft> q, int32_t begin, int32_t end, Floats& check) {
  constexpr bool in_order = !std::is_same_v<Target, Draft>;  // else both rows have the same order
  FixedPointSum sum;
  for (int32_t v = begin; v < end; v += PAIR) {
    Pair weight = p.template pair<in_order>(v);
    if constexpr (has_q) {
      const Pair draft = q.template pair<in_order>(v);
      weight = {weight.a - draft.a, weight.b - draft.b};
    }
    check += weight.a + weight.b;
    sum.add(clamped(weight.a));
    sum.add(clamped(weight.b));
  }
  return sum.total();
}

#if RSK_HAS_VECTORS
// The same of rows with values between 0 and 1.
template <bool has_q, class Element>
int64_t sum_unit_part(Row<Element> p, Row<Element> q, int32_t begin, int32_t end,
                      UnitSum<Element>& sums) {
  UnitSum<Element> sum = sums;
  const int32_t whole = std::min({end, p.size, has_q ? q.size : end});
  int32_t v = begin;
  for (; v + PAIR <= whole; v += PAIR)
    sum.template add<has_q>(p.data + v, has_q ? q.data + v : nullptr);
  for (; v < end; v += PAIR) {  // one row ends, or has ended: their vocabularies may differ
    Elements<Element> target, draft;
    const Element* from = p.place(v, target);
    if (has_q && v < q.size) sum.template add<has_q>(from, q.place(v, draft));
    else sum.template add<false>(from, nullptr);  // q is 0 there
  }
  const int64_t total = sum.take_total();
  sums = sum;
  return total;
}
#endif

template <class Probability>
bool all_finite(Row<Probability> row) {
  for (int32_t v = 0; v < row.size; ++v) {
    if (!is_finite(row[v])) return false;
  }
  return true;
}

// Draw a token in proportion to max(p - q, 0), or to max(p, 0) if that is 0 everywhere. Returns -1
// if a value is not finite or there is no weight. With certain >= 0, q is the point mass at that
// token and the row q is empty.
template <class Target, class Draft>
int64_t draw(uint64_t word, Row<Target> p, Row<Draft> q, int64_t certain) {
  // The row is summed a block at a time, so that only one block is read again to find the token.
  constexpr int32_t BLOCK = std::max(MAX_ADDED * WIDTH, 512);
  const int32_t size = std::max(p.size, q.size);
  int64_t block_total[(1 << 20) / BLOCK], total = 0;
  Floats check = all(0.0f);
  const auto sum = [&](int32_t begin, int32_t end) {
    return q.size ? sum_part<true>(p, q, begin, end, check)
                  : sum_part<false>(p, q, begin, end, check);
  };
  const auto sum_blocks = [&](auto sum) {
    total = 0;
    for (int32_t begin = 0; begin < size; begin += BLOCK)
      total += block_total[begin / BLOCK] = sum(begin, std::min(size, begin + BLOCK));
  };
  bool is_summed = false;
#if RSK_HAS_VECTORS
  if constexpr (std::is_same_v<Target, Draft>) {
    UnitSum<Target> sums;
    sum_blocks([&](int32_t begin, int32_t end) {
      return q.size ? sum_unit_part<true>(p, q, begin, end, sums)
                    : sum_unit_part<false>(p, q, begin, end, sums);
    });
    is_summed = sums.is_exact();
  }
#endif
  if (!is_summed) sum_blocks(sum);
  // Every difference is finite if p and q are, but for overflow far outside [0, 1], also of the
  // check: look twice before refusing.
  if (any(~is_at_least(all(3e38f), absolute(check))) && !(all_finite(p) && all_finite(q)))
    return -1;
  const int64_t change =
      certain < 0 ? 0 : fixed_point(p[certain] - 1.0f) - fixed_point(p[certain]);
  if (certain >= 0) block_total[certain / BLOCK] += change;
  total += change;
  if (total == 0) {
    const bool is_residual = q.size || certain >= 0;
    return is_residual ? draw(word, p, Row<Draft>{}, -1) : -1;
  }
  int64_t rest = threshold(word, total);
  int32_t i = 0;
  while (rest >= block_total[i]) rest -= block_total[i++];
  const auto sum_with_certain = [&](int32_t begin, int32_t end) {
    return sum(begin, end) + (begin <= certain && certain < end ? change : 0);
  };
  const int32_t end = std::min(size, (i + 1) * BLOCK);
  for (int32_t v = find_pair(i * BLOCK, end, rest, sum_with_certain);; ++v) {
    rest -= fixed_point(p[v] - (v == certain ? 1.0f : q[v]));
    if (rest < 0) return v;
  }
}

// Behind the end of a row of probabilities there are zeros.
template <class Target, class Draft>
void decide(const Batch& batch, int32_t b) {
  int32_t n = 0;
  Verdict verdict = Verdict::ended;
  for (; n < batch.spec_len; ++n) {
    verdict = judge<Mixed>(batch, b, n);
    if (verdict != Verdict::accepted) break;
  }
  int64_t token = -1;
  if (verdict != Verdict::invalid) {
    const bool is_rejected = verdict == Verdict::rejected;
    const Row<Target> p{target_row<Target>(batch, b, n), batch.vocab_size, {}};
    Row<Draft> q{};
    if (is_rejected && batch.draft_probs)
      q = {draft_row<Draft>(batch, b, n), batch.draft_vocab_size, {}};
    const int64_t certain = is_rejected && !batch.draft_probs ? draft_token(batch, b, n) : -1;
    token = draw(sample_word(batch, b, n), p, q, certain);
  }
  write_result(batch, b, n, token);
}

}  // namespace

// Requests [begin, end); different ranges may run on different threads.
void fused_cpu(const Batch& batch, int32_t begin, int32_t end) {
  with_type(batch.dtype, [&](auto target) {
    with_type(batch.draft_dtype, [&](auto draft) {
      for (int32_t b = begin; b < end; ++b) decide<decltype(target), decltype(draft)>(batch, b);
    });
  });
}

}  // namespace rsk
