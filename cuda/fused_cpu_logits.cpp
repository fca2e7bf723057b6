// The fused sampler from logits on the CPU. A row that is needed is read from memory once, for its
// maximum. What the filters keep is then found among the few tokens above a bound, which the maxima
// of parts of the row give; or else in further passes over a row that the cache still holds.
#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "kernels.h"
#include "row_law.h"
#include "vectors.h"

namespace rsk {
namespace {

constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

inline float minus_infinity(float) { return MINUS_INFINITY; }
inline BFloat16 minus_infinity(BFloat16) { return {0xFF80}; }
inline Float16 minus_infinity(Float16) { return {0xFC00}; }

// Behind the end of a row of logits there is -infinity, which weighs nothing.
template <class Logit>
Row<Logit> row_of(const Logit* data, int32_t size) {
  return {data, size, minus_infinity(Logit{})};
}

// Of each block of a row it is kept what maxima it has.
constexpr int32_t BLOCK = 512;
constexpr int32_t MAX_BLOCKS = (1 << 20) / BLOCK;
static_assert(BLOCK % PAIR == 0 && BLOCK <= MAX_ADDED * std::max(WIDTH, 4), "summed in one go");

inline int32_t num_blocks(int32_t size) { return (size + BLOCK - 1) / BLOCK; }

// -------------------------------------------------------------------------------- the law of a row

// A token that is kept: its logit, its weight relative to the largest one, its index.
struct Token {
  float x, e;
  int32_t v;
};

constexpr int32_t MAX_LISTED = 2048;
constexpr int32_t TOO_MANY = -1;

// What is known of the row read last, besides its law.
struct Scratch {
  Pair lane_max[MAX_BLOCKS];  // the maximum of each lane of the pairs of a block
  float block_max[MAX_BLOCKS];
  int32_t num_kept;
  Token kept[MAX_LISTED];     // what the filters keep, unless num_kept is TOO_MANY

  bool is_listed() const { return num_kept != TOO_MANY; }
  Token* kept_end() { return kept + num_kept; }
};

// relative_weight() of row_law.h, with y.
struct Exponential {
  Floats y, e;
};

inline Exponential relative_weights(Floats x, const RowLaw& law) {
  const Floats y = (x - law.maximum) * law.scale;
  const Floats magic = all(12582912.0f);
  const Floats shifted = y + magic;
  const Floats f = y - (shifted - magic);
  Floats r = all(0x1.5bba14p-10f);
  r = r * f + 0x1.3cea88p-7f;
  r = r * f + 0x1.c6b752p-5f;
  r = r * f + 0x1.ebf9bcp-3f;
  r = r * f + 0x1.62e42ap-1f;
  r = r * f + 1.0f;
  const Ints scaled = as_ints(r) + (as_ints(shifted) << 23);
  return {y, as_floats(scaled & is_at_least(y, all(-42.0f)))};
}

// e of the tokens that the filters keep, 0 for the others.
inline Floats kept_weights(Floats x, const RowLaw& law, float min_p) {
  const Floats e = relative_weights(x, law).e;
  return as_floats(as_ints(e) & is_at_least(x, all(law.threshold)) & is_at_least(e, all(min_p)));
}

// A bound on x: below it a row's law has p = 0. From min-p, or from e = 0 below 2^-42, half an octave
// lower than needed, far from any rounding.
inline float least_logit(const RowLaw& law, float min_p) {
  const int32_t exponent = std::max((int32_t)(bits_of(min_p) >> 23) - 127, -42);
  return std::max(law.threshold, law.maximum + ((float)exponent - 0.5f) / law.scale);
}

// Call f(begin, end) with each block of a row that has a value x >= bound.
template <class Logit, class Function>
inline void for_each_block(Row<Logit> row, float bound, const Scratch& scratch, Function f) {
  for (int32_t i = 0; i < num_blocks(row.size); ++i) {
    if (scratch.block_max[i] >= bound)
      f(i * BLOCK, std::min(row.size, (i + 1) * BLOCK));
  }
}

// The maxima of a row's lanes. Returns the row's; NaN if the row holds one.
template <class Logit>
float read_maxima(Row<Logit> row, Scratch& scratch) {
  Ints nan{};
  float row_max = MINUS_INFINITY;
  for (int32_t i = 0; i < num_blocks(row.size); ++i) {
    Pair largest{all(MINUS_INFINITY), all(MINUS_INFINITY)};
    const int32_t end = std::min(row.size, (i + 1) * BLOCK);
    for (int32_t v = i * BLOCK; v < end; v += PAIR) {
      const Pair x = row.template pair<false>(v);
      largest = {larger(x.a, largest.a), larger(x.b, largest.b)};
      nan |= is_nan(x.a) | is_nan(x.b);
    }
    scratch.lane_max[i] = largest;
    scratch.block_max[i] = largest_lane(larger(largest.a, largest.b));
    row_max = std::max(row_max, scratch.block_max[i]);
  }
  return any(nan) ? float_of(0x7FC00000u) : row_max;
}

// Integers that order as floats do.
inline int32_t order_of(float x) {
  const int32_t bits = (int32_t)bits_of(x);
  return bits ^ (bits >> 31 & 0x7FFFFFFF);
}
inline float in_order(int32_t i) { return float_of((uint32_t)(i ^ (i >> 31 & 0x7FFFFFFF))); }

// A bound on the k-th largest value of a row, and a close one: the k-th largest of the maxima of parts
// of it, of which at least k have a value that large. There are some 8 k parts, and their k-th
// largest is found by bisection over the floats: each step counts those that are at least as large
// as the middle. -infinity for rows of fewer than k lanes.
inline float bound_of_top_k(const Scratch& scratch, int32_t num_blocks, int64_t k, float largest) {
  Pair part_max[MAX_BLOCKS];
  const int64_t blocks_in_part = std::max<int64_t>(1, num_blocks * (int64_t)PAIR / (8 * k));
  int32_t num_parts = 0;
  for (int32_t i = 0; i < num_blocks; ++num_parts) {
    Pair& part = part_max[num_parts] = scratch.lane_max[i];
    const int64_t end = std::min<int64_t>(num_blocks, i + blocks_in_part);
    while (++i < end) {
      part.a = larger(part.a, scratch.lane_max[i].a);
      part.b = larger(part.b, scratch.lane_max[i].b);
    }
  }
  int64_t low = order_of(MINUS_INFINITY), high = order_of(largest);
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    const Floats bound = all(in_order((int32_t)middle));
    Ints count{};
    for (int32_t i = 0; i < num_parts; ++i)
      count -= is_at_least(part_max[i].a, bound) + is_at_least(part_max[i].b, bound);
    if (sum_lanes(count) >= k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return in_order((int32_t)low);
}

// List the tokens with x >= bound, unless they are too many. Only the lanes of a block whose maximum
// says that they have one are looked at.
template <class Logit>
void list_tokens(Row<Logit> row, float bound, Scratch& scratch) {
  scratch.num_kept = 0;
  for (int32_t i = 0; i < num_blocks(row.size); ++i) {
    if (!(scratch.block_max[i] >= bound)) continue;
    const Lanes<float, PAIR> lane_max(scratch.lane_max[i]);
    const int32_t end = std::min(row.size, (i + 1) * BLOCK);
    for (int32_t lane = 0; lane < PAIR; ++lane) {
      if (!(lane_max[lane] >= bound)) continue;
      for (int32_t v = i * BLOCK + place_in_pair<Logit>(lane); v < end; v += PAIR) {
        const float x = widen(row.data[v]);
        if (!(x >= bound)) continue;
        if (scratch.num_kept == MAX_LISTED) {
          scratch.num_kept = TOO_MANY;
          return;
        }
        scratch.kept[scratch.num_kept++] = {x, 0.0f, v};
      }
    }
  }
}

// Of the tokens that are listed, drop those that the filters do not keep; e of the others.
inline void weigh_tokens(const RowLaw& law, float min_p, Scratch& scratch) {
  if (!scratch.is_listed()) return;
  const Token* const end = scratch.kept_end();
  scratch.num_kept = 0;
  for (const Token* token = scratch.kept; token != end; ++token) {
    const float e = relative_weight(token->x, law.maximum, law.scale);
    if (token->x >= law.threshold && e >= min_p)
      scratch.kept[scratch.num_kept++] = {token->x, e, token->v};
  }
}

inline bool comes_before(const Token& i, const Token& j) { return i.x > j.x; }

inline int64_t total_weight(const Token* begin, const Token* end) {
  int64_t total = 0;
  for (; begin != end; ++begin) total += weight_of(begin->e);
  return total;
}

// The largest x such that the tokens at or above it have the mass wanted; reorders the tokens.
inline float mass_threshold(Token* begin, Token* end, int64_t mass) {
  for (;;) {
    const float pivot = begin[(end - begin) / 2].x;
    Token* const above = std::partition(begin, end, [&](auto& token) { return token.x > pivot; });
    const int64_t above_mass = total_weight(begin, above);
    if (above_mass >= mass) {
      end = above;
      continue;
    }
    begin = std::partition(above, end, [&](auto& token) { return token.x == pivot; });
    mass -= above_mass + total_weight(above, begin);
    if (mass <= 0) return pivot;
  }
}

// The thresholds of top-k and top-p in a row of which too many tokens are left to list them. The
// tokens fall into buckets of y, which orders as x does; the count or the mass of each bucket says
// which one has the threshold, and only that one is looked at closer.
constexpr int32_t NUM_BUCKETS = 4096;

// Call f(x, e, bucket) with vectors of the blocks that have a value x >= bound. e is 0 below the
// threshold.
template <class Logit, class Function>
inline void for_each_bucketed(Row<Logit> row, const RowLaw& law, float bound,
                              const Scratch& scratch, Function f) {
  for_each_block(row, bound, scratch, [&](int32_t begin, int32_t end) {
    for (int32_t v = begin; v < end; v += PAIR) {
      const Pair pair = row.template pair<false>(v);
      for (const Floats x : {pair.a, pair.b}) {
        const Exponential of_x = relative_weights(x, law);
        const Ints e = as_ints(of_x.e) & is_at_least(x, all(law.threshold));
        const Floats last = all(NUM_BUCKETS - 1);
        f(x, as_floats(e), truncated(smaller(of_x.y * (last / -42.0f), last)));
      }
    }
  });
}

template <class Logit>
std::vector<Token> tokens_in_bucket(int32_t bucket, Row<Logit> row, const RowLaw& law, float bound,
                                    const Scratch& scratch) {
  std::vector<Token> tokens;
  for_each_bucketed(row, law, bound, scratch, [&](Floats x, Floats e, Ints buckets) {
    if (!any(is_equal(buckets, Ints{} + bucket))) return;
    const Lanes<float> logits(x), weights(e);
    const Lanes<int32_t> bucket_of(buckets);
    for (int32_t i = 0; i < WIDTH; ++i) {
      if (bucket_of[i] == bucket) tokens.push_back({logits[i], weights[i], 0});
    }
  });
  return tokens;
}

template <class Logit>
float kth_largest(Row<Logit> row, const RowLaw& law, int64_t k, const Scratch& scratch) {
  int32_t count[NUM_BUCKETS] = {};
  for_each_bucketed(row, law, MINUS_INFINITY, scratch, [&](Floats, Floats, Ints buckets) {
    const Lanes<int32_t> bucket_of(buckets);
    for (int32_t i = 0; i < WIDTH; ++i) ++count[bucket_of[i]];
  });
  int32_t found = 0;
  while (k > count[found]) k -= count[found++];
  std::vector<Token> tokens = tokens_in_bucket(found, row, law, MINUS_INFINITY, scratch);
  const auto kth = tokens.begin() + (k - 1);
  std::nth_element(tokens.begin(), kth, tokens.end(), comes_before);
  return kth->x;
}

template <class Logit>
float nucleus_threshold(Row<Logit> row, const RowLaw& law, float top_p, const Scratch& scratch) {
  int64_t mass[NUM_BUCKETS] = {}, total = 0;
  const float bound = least_logit(law, 0.0f);
  for_each_bucketed(row, law, bound, scratch, [&](Floats, Floats e, Ints buckets) {
    const Lanes<float> weights(e);
    const Lanes<int32_t> bucket_of(buckets);
    for (int32_t i = 0; i < WIDTH; ++i) mass[bucket_of[i]] += weight_of(weights[i]);
  });
  for (const int64_t of_bucket : mass) total += of_bucket;
  int64_t rest = mass_to_keep(top_p, total);
  int32_t found = 0;
  while (rest > mass[found]) rest -= mass[found++];
  std::vector<Token> tokens = tokens_in_bucket(found, row, law, bound, scratch);
  return mass_threshold(tokens.data(), tokens.data() + tokens.size(), rest);
}

// The law of a row. The tokens that it keeps are listed in `scratch`, if they are few.
template <class Logit>
RowLaw read_row(Row<Logit> row, const Filter& filter, Scratch& scratch) {
  if (!is_valid(filter)) return invalid_law();
  const float maximum = read_maxima(row, scratch);
  if (!is_finite(maximum)) return invalid_law();

  if (filter.temperature == 0.0f) {
    int32_t i = 0;
    while (scratch.block_max[i] != maximum) ++i;
    int32_t first = i * BLOCK;
    while (row[first] != maximum) ++first;
    scratch.num_kept = 1;
    scratch.kept[0] = {maximum, 1.0f, first};
    return greedy_law(maximum, first);
  }

  RowLaw law{maximum, scale_of(filter.temperature), MINUS_INFINITY, 0.0f};
  const bool has_top_k = filter.top_k > 0 && filter.top_k < row.size;
  const bool has_top_p = filter.top_p < 1.0f;
  Token* const kept = scratch.kept;
  scratch.num_kept = TOO_MANY;
  if (has_top_k) {
    const int64_t k = filter.top_k;
    list_tokens(row, bound_of_top_k(scratch, num_blocks(row.size), k, maximum), scratch);
    if (scratch.is_listed()) {
      std::nth_element(kept, kept + (k - 1), scratch.kept_end(), comes_before);
      law.threshold = kept[k - 1].x;
    } else {
      law.threshold = kth_largest(row, law, k, scratch);
      list_tokens(row, law.threshold, scratch);
    }
  } else if (filter.min_p > 0.0f && !has_top_p) {
    list_tokens(row, least_logit(law, filter.min_p), scratch);
  }
  if (has_top_p && scratch.is_listed()) {
    weigh_tokens(law, 0.0f, scratch);
    const int64_t mass = mass_to_keep(filter.top_p, total_weight(kept, scratch.kept_end()));
    law.threshold = mass_threshold(kept, scratch.kept_end(), mass);
  } else if (has_top_p) {
    law.threshold = nucleus_threshold(row, law, filter.top_p, scratch);
    list_tokens(row, law.threshold, scratch);
  }
  weigh_tokens(law, filter.min_p, scratch);

  int64_t total = 0;
  if (scratch.is_listed()) {
    total = total_weight(kept, scratch.kept_end());
  } else {
    const float bound = least_logit(law, filter.min_p);
    for_each_block(row, bound, scratch, [&](int32_t begin, int32_t end) {
      FixedPointSum sum;
      for (int32_t v = begin; v < end; v += PAIR) {
        const Pair x = row.template pair<false>(v);
        sum.add(kept_weights(x.a, law, filter.min_p));
        sum.add(kept_weights(x.b, law, filter.min_p));
      }
      total += sum.total();
    });
  }
  law.normalizer = normalizer_of(total);
  return law;
}

// ----------------------------------------------------------------------------------- a token of it

// A distribution: a row of logits of any type, and its law.
struct Distribution {
  const void* logits;
  Dtype dtype;
  int32_t size;
  float min_p;
  RowLaw law;

  // Its probability of v; 0 behind its end, else NaN if the row is invalid.
  float operator[](int64_t v) const {
    if (v >= size) return 0.0f;
    if (is_invalid(law)) return law.normalizer;
    return with_type(dtype, [&](auto type) {
      return probability(law, min_p, widen(((const decltype(type)*)logits)[v]), (int32_t)v);
    });
  }

  template <class Logit>
  Row<Logit> row() const { return row_of((const Logit*)logits, size); }
};

inline Floats probabilities(Floats x, const Distribution& of) {
  return kept_weights(x, of.law, of.min_p) * of.law.normalizer;
}

// Draw a token in proportion to max(p - q, 0), from a row p of which `scratch` knows what is kept.
// With q null: in proportion to p; with certain >= 0, q is the point mass there. Returns -1 if there
// is no weight.
int64_t draw_listed(uint64_t word, const Distribution& p, const Distribution* q, int64_t certain,
                    Scratch& scratch) {
  Token* const kept = scratch.kept;
  std::sort(kept, kept + scratch.num_kept, [](auto& i, auto& j) { return i.v < j.v; });
  int64_t weights[MAX_LISTED], total = 0;
  for (int32_t i = 0; i < scratch.num_kept; ++i) {
    const int32_t v = kept[i].v;
    const float draft = q ? (*q)[v] : v == certain ? 1.0f : 0.0f;
    weights[i] = fixed_point(rounded_product(kept[i].e, p.law.normalizer) - draft);
    total += weights[i];
  }
  if (total == 0) return -1;
  int64_t rest = threshold(word, total);
  int32_t i = 0;
  while (rest >= weights[i]) rest -= weights[i++];
  return kept[i].v;
}

template <class Target, class Draft>
int64_t draw_unlisted(uint64_t word, const Distribution& p, const Distribution* q, int64_t certain,
                      const Scratch& scratch) {
  constexpr bool in_order = !std::is_same_v<Target, Draft>;
  const Row<Target> p_row = p.row<Target>();
  const Row<Draft> q_row = q ? q->row<Draft>() : Row<Draft>{};
  const auto weight_of_part = [&](int32_t begin, int32_t end) {
    FixedPointSum sum;
    for (int32_t v = begin; v < end; v += PAIR) {
      const Pair x = p_row.template pair<in_order>(v);
      Floats a = probabilities(x.a, p), b = probabilities(x.b, p);
      if (q) {
        const Pair y = q_row.template pair<in_order>(v);
        a -= probabilities(y.a, *q);
        b -= probabilities(y.b, *q);
      }
      sum.add(clamped(a));
      sum.add(clamped(b));
    }
    int64_t total = sum.total();
    if (begin <= certain && certain < end)
      total += fixed_point(p[certain] - 1.0f) - fixed_point(p[certain]);
    return total;
  };
  int64_t block_weight[MAX_BLOCKS] = {}, total = 0;
  for_each_block(p_row, least_logit(p.law, p.min_p), scratch, [&](int32_t begin, int32_t end) {
    total += block_weight[begin / BLOCK] = weight_of_part(begin, end);
  });
  if (total == 0) return -1;
  int64_t rest = threshold(word, total);
  int32_t i = 0;
  while (rest >= block_weight[i]) rest -= block_weight[i++];
  int32_t v = find_pair(i * BLOCK, (i + 1) * BLOCK, rest, weight_of_part);
  for (; v < p.size; ++v) {
    rest -= fixed_point(p[v] - (q ? (*q)[v] : v == certain ? 1.0f : 0.0f));
    if (rest < 0) return v;
  }
  return -1;  // only if the law of q that we were given holds numbers that no row has
}

// The token of a greedy row, or -1 if the law that we were given names none.
int64_t greedy_token(const Distribution& of) {
  const float v = of.law.threshold;
  return v >= 0.0f && v < (float)of.size && v == (float)(int32_t)v ? (int32_t)v : -1;
}

int64_t draw(uint64_t word, const Distribution& p, const Distribution* q, int64_t certain,
             Scratch& scratch) {
  if (is_invalid(p.law) || (q && is_invalid(q->law))) return -1;
  if (q && is_greedy(q->law)) return draw(word, p, nullptr, greedy_token(*q), scratch);
  const int64_t token =
      scratch.is_listed() ? draw_listed(word, p, q, certain, scratch)
                          : with_type(p.dtype, [&](auto target) {
                              return with_type(q ? q->dtype : p.dtype, [&](auto draft) {
                                return draw_unlisted<decltype(target), decltype(draft)>(
                                    word, p, q, certain, scratch);
                              });
                            });
  const bool is_residual = q || certain >= 0;
  return token < 0 && is_residual ? draw(word, p, nullptr, -1, scratch) : token;
}

// ------------------------------------------------------------------------------------- a request

Distribution read_target(const LogitsBatch& call, int32_t b, int32_t k, const Filter& filter,
                         Scratch& scratch) {
  const Batch& batch = call.batch;
  return with_type(batch.dtype, [&](auto type) -> Distribution {
    const auto* logits = target_row<decltype(type)>(batch, b, k);
    const RowLaw law = read_row(row_of(logits, batch.vocab_size), filter, scratch);
    return {logits, batch.dtype, batch.vocab_size, filter.min_p, law};
  });
}

Distribution read_draft(const LogitsBatch& call, int32_t b, int32_t k, const Filter& filter,
                        Scratch& scratch) {
  const Batch& batch = call.batch;
  return with_type(batch.draft_dtype, [&](auto type) -> Distribution {
    const auto* logits = draft_row<decltype(type)>(batch, b, k);
    const RowLaw law =
        call.draft_laws ? call.draft_laws[(int64_t)b * batch.spec_len + k]
                        : read_row(row_of(logits, batch.draft_vocab_size), filter, scratch);
    return {logits, batch.draft_dtype, batch.draft_vocab_size, filter.min_p, law};
  });
}

// Both distributions at a position, and what is known of the row p.
struct Position {
  Distribution p, q;
  Scratch* scratch;
};

// read(k, has_draft) gives position k; only with has_draft the draft's row is needed.
template <class Read>
void decide(const LogitsBatch& call, int32_t b, Read read) {
  const Batch& batch = call.batch;
  const bool has_row = batch.draft_probs;
  int32_t n = 0;
  Verdict verdict = Verdict::ended;
  Position at;
  for (; n < batch.spec_len; ++n) {
    const int64_t d = draft_token(batch, b, n);
    verdict = d == -1                              ? Verdict::ended
              : d < 0 || d >= num_columns(batch) ? Verdict::invalid
                                                   : Verdict::accepted;
    if (verdict != Verdict::accepted) break;
    at = read(n, has_row);
    const float p = at.p[d], q = has_row ? at.q[d] : 1.0f;
    if (!is_finite(p) || !is_finite(q)) {
      verdict = Verdict::invalid;
    } else if (!(coin(batch, b, n) * (double)q < (double)p)) {
      verdict = Verdict::rejected;
    }
    if (verdict != Verdict::accepted) break;
  }
  int64_t token = -1;
  if (verdict != Verdict::invalid) {
    const bool is_rejected = verdict == Verdict::rejected;
    if (!is_rejected) at = read(n, false);
    const Distribution* const q = is_rejected && has_row ? &at.q : nullptr;
    const int64_t certain = is_rejected && !has_row ? draft_token(batch, b, n) : -1;
    token = draw(sample_word(batch, b, n), at.p, q, certain, *at.scratch);
    if (call.laws) call.laws[b] = at.p.law;
  }
  write_result(batch, b, n, token);
}

}  // namespace

void fused_cpu_logits(const LogitsBatch& call, int32_t begin, int32_t end) {
  Scratch scratch;
  for (int32_t b = begin; b < end; ++b) {
    const Filter filter = filter_of(call.filters, b);
    decide(call, b, [&](int32_t k, bool has_draft) {
      Position at{{}, {}, &scratch};
      if (has_draft) at.q = read_draft(call, b, k, filter, scratch);
      at.p = read_target(call, b, k, filter, scratch);  // last: the scratch is to know this row
      return at;
    });
  }
}

void fused_cpu_logits_ahead(const LogitsBatch& call, int32_t width, RunAll* run_all) {
  const Batch& batch = call.batch;
  // The target's and the draft's row of a position stand side by side.
  const std::unique_ptr<Scratch[]> scratch(new Scratch[2 * width]);
  const std::unique_ptr<Distribution[]> rows(new Distribution[2 * width]);
  for (int32_t b = 0; b < batch.batch_size; ++b) {
    const Filter filter = filter_of(call.filters, b);
    int32_t begin = 0, end = 0;
    const auto read_row = [&](int32_t i) {
      const int32_t k = begin + i / 2;
      if (i % 2 == 0) {
        rows[i] = read_target(call, b, k, filter, scratch[i]);
      } else if (batch.draft_probs && k < batch.spec_len) {
        rows[i] = read_draft(call, b, k, filter, scratch[i]);
      }
    };
    decide(call, b, [&](int32_t k, bool) -> Position {
      if (k >= end) {
        begin = k;
        end = std::min(k + width, batch.spec_len + 1);
        const auto call_it = [](int32_t i, const void* task) { (*(decltype(read_row)*)task)(i); };
        run_all(2 * (end - begin), num_columns(batch), call_it, &read_row);
      }
      const int32_t i = 2 * (k - begin);
      return {rows[i], rows[i + 1], &scratch[i]};
    });
  }
}

void probabilities_cpu(const LogitsBatch& call, float* out, int64_t begin, int64_t end) {
  const int32_t num_rows = call.batch.spec_len + 1;  // of a request
  const int32_t size = call.batch.vocab_size;
  Scratch scratch;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t b = (int32_t)(i / num_rows), k = (int32_t)(i % num_rows);
    const Distribution p = read_target(call, b, k, filter_of(call.filters, b), scratch);
    float* row = out + i * size;
    if (is_invalid(p.law) || scratch.is_listed()) {
      std::fill(row, row + size, is_invalid(p.law) ? p.law.normalizer : 0.0f);
      if (is_invalid(p.law)) continue;
      for (int32_t j = 0; j < scratch.num_kept; ++j)
        row[scratch.kept[j].v] = rounded_product(scratch.kept[j].e, p.law.normalizer);
    } else {
      with_type(p.dtype, [&](auto type) {
        const auto logits = p.row<decltype(type)>();
        for (int32_t v = 0; v < size; v += PAIR) {
          const Pair x = logits.template pair<true>(v);
          const Floats both[2] = {probabilities(x.a, p), probabilities(x.b, p)};
          memcpy(row + v, both, std::min(PAIR, size - v) * sizeof(float));
        }
      });
    }
  }
}

}  // namespace rsk
