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

// A row is summed in pieces, and at most MARKS times it is marked how far the sum has come. To find a
// token is to find the mark before it, and to sum again what is behind that mark.
constexpr int32_t PIECE = 512, MARKS = 128;

// The weights max(p - q, 0) of two rows, or max(p, 0) of one if q is empty.
template <class Target, class Draft>
class Weights {
 public:
  Weights(Row<Target> p, Row<Draft> q)
      : p_(p), q_(q), size_(std::max(p.size, q.size)),
        stride_((size_ + PIECE * MARKS - 1) / (PIECE * MARKS) * PIECE) {}

  // The sum of all weights. The marks are made on the way.
  int64_t total() {
    int64_t sum = 0;
#if RSK_HAS_VECTORS
    if constexpr (std::is_same_v<Target, Draft>) {
      is_unit_ = q_.size ? sum_unit_row<true>(sum) : sum_unit_row<false>(sum);
      if (is_unit_) return sum;
      sum = 0;
    }
#endif
    for (int32_t begin = 0; begin < size_; begin += PIECE) {
      mark(begin, UnitSum::after(sum));
      sum += piece(begin, std::min(size_, begin + PIECE));
    }
    return sum;
  }

  // The sum of a piece or less, that begins at a multiple of PAIR.
  int64_t piece(int32_t begin, int32_t end) {
#if RSK_HAS_VECTORS
    if constexpr (std::is_same_v<Target, Draft>) {
      UnitWeights<true, Target> with_q;
      UnitWeights<false, Target> without_q;
      if (is_unit_)
        return q_.size ? unit_piece(begin, end, with_q) : unit_piece(begin, end, without_q);
    }
#endif
    return q_.size ? sum_part<true>(p_, q_, begin, end, check_)
                   : sum_part<false>(p_, q_, begin, end, check_);
  }

  // The token at which the running sum first exceeds `rest`. To the weight of the token `certain`, if
  // it is not -1, `change` is added.
  int64_t find(int64_t rest, int64_t certain, int64_t change) {
    const auto changed = [&](int32_t begin, int32_t end) {
      return begin <= certain && certain < end ? change : 0;
    };
    int32_t first = 0, last = (size_ - 1) / stride_;  // of the marks that it may be behind
    int64_t before = 0;
    while (first < last) {
      const int32_t middle = (first + last + 1) / 2;
      const int64_t sum = marks_[middle].total() + changed(0, middle * stride_);
      if (sum <= rest) first = middle, before = sum;
      else last = middle - 1;
    }
    rest -= before;
    const int32_t begin = first * stride_, end = std::min(size_, begin + stride_);
    int32_t v = find_pair(begin, end, rest, [&](int32_t begin, int32_t end) {
      int64_t sum = changed(begin, end);
      for (; begin < end; begin += PIECE) sum += piece(begin, std::min(end, begin + PIECE));
      return sum;
    });
    for (;; ++v) {
      rest -= fixed_point(p_[v] - (v == certain ? 1.0f : q_[v]));
      if (rest < 0) return v;
    }
  }

  // Every difference is finite if p and q are, but for overflow far outside [0, 1].
  bool may_be_infinite() const { return any(~is_at_least(all(3e38f), absolute(check_))); }

 private:
  void mark(int32_t begin, const UnitSum& sum) {
    if (begin % stride_ == 0) marks_[begin / stride_] = sum;
  }

#if RSK_HAS_VECTORS
  // If all values are between 0 and 1, as those of distributions are, there is a faster way. Whether
  // they were is known, and returned, at the end.
  template <bool has_q>
  bool sum_unit_row(int64_t& sum) {
    UnitWeights<has_q, Target> weights;
    int32_t begin = (has_q ? std::min(p_.size, q_.size) : p_.size) / PIECE * PIECE;
    sum = whole_pieces(begin, weights);
    for (; begin < size_; begin += PIECE) {
      mark(begin, UnitSum::after(sum));
      sum += unit_piece(begin, std::min(size_, begin + PIECE), weights);
    }
    return weights.are_exact(sum);
  }

  // The pieces before `end`. Not inline: among all else GCC keeps a sum in memory, and the loop takes
  // twice as long.
  template <bool has_q>
  RSK_NOT_INLINE int64_t whole_pieces(int32_t end, UnitWeights<has_q, Target>& result) {
    UnitWeights<has_q, Target> weights;
    UnitSum sum = UnitSum::after(0);
    const Target* p = p_.data;
    const Draft* q = has_q ? q_.data : p;
    for (int32_t begin = 0; begin < end; begin += PIECE) {
      if (begin % (MAX_UNITS * WIDTH) == 0) sum = UnitSum::after(sum.total());
      mark(begin, sum);
      for (int32_t v = 0; v < PIECE; v += 2 * PAIR, p += 2 * PAIR, q += 2 * PAIR)
        sum.add({weights.read(p, q), weights.read(p + PAIR, q + PAIR)});
    }
    result = weights;
    return sum.total();
  }

  template <bool has_q>
  RSK_NOT_INLINE int64_t unit_piece(int32_t begin, int32_t end, UnitWeights<has_q, Target>& result) {
    UnitWeights<has_q, Target> weights = result;
    UnitSum sum = UnitSum::after(0);
    Elements<Target> target, draft;
    for (; begin < end; begin += PAIR) {
      const Target* const p = p_.place(begin, target);
      sum.add({weights.read(p, has_q ? q_.place(begin, draft) : p)});
    }
    result = weights;
    return sum.total();
  }
#endif

  Row<Target> p_;
  Row<Draft> q_;
  int32_t size_, stride_;
  bool is_unit_ = false;
  Floats check_ = all(0.0f);  // NaN or infinite if a difference was
  UnitSum marks_[MARKS];
};

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
  Weights<Target, Draft> weights(p, q);
  int64_t total = weights.total(), change = 0;
  if (weights.may_be_infinite() && !(all_finite(p) && all_finite(q))) return -1;
  if (certain >= 0) change = fixed_point(p[certain] - 1.0f) - fixed_point(p[certain]);
  total += change;
  if (total == 0) {
    const bool is_residual = q.size || certain >= 0;
    return is_residual ? draw(word, p, Row<Draft>{}, -1) : -1;
  }
  return weights.find(threshold(word, total), certain, change);
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
