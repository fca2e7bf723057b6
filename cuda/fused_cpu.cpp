// The fused sampler on the CPU: one pass over the one row (or row pair) that a token is sampled
// from, with early exit at the first rejection.
//
// A scalar loop over the row takes some twenty times longer: converting a float to int64 one at a
// time keeps a compiler from vectorising. So each weight is split in two halves of 21 bits, which
// convert to int32 in vector registers of any instruction set, and the halves are summed apart.
#include <algorithm>

#include "specification.h"

namespace rsk {
namespace {

// A row of probabilities; behind its end they are 0.
template <class Probability>
struct Row {
  const Probability* data;
  int32_t size;

  float operator[](int64_t v) const { return v < size ? widen(data[v]) : 0.0f; }

  template <int32_t count>
  void copy_padded(int32_t v, Probability (&out)[count]) const {
    for (int32_t i = 0; i < count; ++i) out[i] = v + i < size ? data[v + i] : Probability{};
  }
};

// Rows are summed a block at a time, so that only one block is walked again to find the token.
constexpr int32_t BLOCK = 512;
constexpr int32_t MAX_BLOCKS = (1 << 20) / BLOCK;

#if (defined(__GNUC__) || defined(__clang__)) && !defined(RSK_SCALAR)

#if defined(__AVX512F__)
constexpr int32_t WIDTH = 16;
#elif defined(__AVX__)
constexpr int32_t WIDTH = 8;
#else
constexpr int32_t WIDTH = 4;
#endif
static_assert(BLOCK % WIDTH == 0, "a block is a whole number of vectors");

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Shorts __attribute__((vector_size(2 * WIDTH)));

inline Floats as_floats(Ints x) {
  Floats y;
  memcpy(&y, &x, sizeof y);
  return y;
}

inline Ints as_ints(Floats x) {
  Ints y;
  memcpy(&y, &x, sizeof y);
  return y;
}

inline Floats load(const float* x) {
  Floats y;
  memcpy(&y, x, sizeof y);
  return y;
}

inline Ints load_bits(const void* x) {
  Shorts y;
  memcpy(&y, x, sizeof y);
  return __builtin_convertvector(y, Ints);
}

inline Floats load(const BFloat16* x) { return as_floats(load_bits(x) << 16); }

inline Floats load(const Float16* x) {  // widen() of specification.h, without branches
  const Ints bits = load_bits(x);
  const Ints sign = (bits & 0x8000) << 16;
  const Ints magnitude = (bits & 0x7FFF) << 13;
  const Ints normal = magnitude + (112 << 23);
  const Ints one = Ints{} + (113 << 23);
  const Ints subnormal = as_ints(as_floats(magnitude + one) - as_floats(one));
  const Ints is_subnormal = magnitude < (0x0400 << 13);
  const Ints is_special = magnitude >= (0x7C00 << 13);
  const Ints widened = (subnormal & is_subnormal) | (normal & ~is_subnormal) |
                       (is_special & 0x7F800000);
  return as_floats(widened | sign);
}

inline Floats larger(Floats x, Floats y) { return x > y ? x : y; }
inline Floats smaller(Floats x, Floats y) { return x < y ? x : y; }
inline Ints larger(Ints x, Ints y) { return x > y ? x : y; }

inline int32_t sum_lanes(Ints x) {
  int32_t lanes[WIDTH], sum = 0;
  memcpy(lanes, &x, sizeof lanes);
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

// region sum in halves
// Sum the weights max(p - q, 0) of each block of a row pair in fixed point; a row that is shorter
// than the other goes on with zeros. Returns whether every p - q is finite.
template <class Target, class Draft>
bool sum_blocks(Row<Target> p, Row<Draft> q, int64_t* block_total) {
  const int32_t size = std::max(p.size, q.size);
  const int32_t common = q.size ? std::min(p.size, q.size) : p.size;
  const Floats zero{}, unit = zero + 1.0f, scale = zero + 2097152.0f;  // 2^21
  Ints largest{};  // bits of the largest |p - q|: they order as the numbers do
  for (int32_t start = 0; start < size; start += BLOCK) {
    Ints high_sum{}, low_sum{};  // at most BLOCK * 2^21, all lanes together: no overflow
    const auto add = [&](const Target* pv, const Draft* qv) {
      const Floats weight = qv ? load(pv) - load(qv) : load(pv);
      largest = larger(largest, as_ints(weight) & 0x7FFFFFFF);
      const Floats scaled = smaller(larger(weight, zero), unit) * scale;
      const Ints high = __builtin_convertvector(scaled, Ints);
      const Floats rest = scaled - __builtin_convertvector(high, Floats);  // exact
      high_sum += high;
      low_sum += __builtin_convertvector(rest * scale, Ints);
    };
    const int32_t end = std::min(size, start + BLOCK);
    int32_t v = start;
    for (; v + WIDTH <= std::min(end, common); v += WIDTH)
      add(p.data + v, q.size ? q.data + v : nullptr);
    for (; v < end; v += WIDTH) {  // the end of a row: pad with p = q = 0, which weighs nothing
      Target p_end[WIDTH];
      Draft q_end[WIDTH];
      p.copy_padded(v, p_end);
      q.copy_padded(v, q_end);
      add(p_end, q_end);
    }
    *block_total++ = ((int64_t)sum_lanes(high_sum) << 21) + sum_lanes(low_sum);
  }
  return sum_lanes(largest >= 0x7F800000) == 0;
}
// endregion

#else

template <class Target, class Draft>
bool sum_blocks(Row<Target> p, Row<Draft> q, int64_t* block_total) {
  const int32_t size = std::max(p.size, q.size);
  bool finite = true;
  for (int32_t start = 0; start < size; start += BLOCK) {
    const int32_t end = std::min(size, start + BLOCK);
    int64_t total = 0;
    for (int32_t v = start; v < end; ++v) {
      const float weight = p[v] - q[v];
      total += fixed_point(weight);
      finite &= is_finite(weight);
    }
    *block_total++ = total;
  }
  return finite;
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
int64_t draw(const Batch& batch, int32_t b, int32_t n, Row<Target> p, Row<Draft> q,
             int64_t certain) {
  const int32_t num_blocks = (std::max(p.size, q.size) + BLOCK - 1) / BLOCK;
  int64_t block_total[MAX_BLOCKS];
  // p - q is finite if p and q are, but for overflow far outside [0, 1]: look twice before refusing.
  if (!sum_blocks(p, q, block_total) && !(all_finite(p) && all_finite(q))) return -1;
  if (certain >= 0) {
    const float x = p[certain];
    block_total[certain / BLOCK] += fixed_point(x - 1.0f) - fixed_point(x);
  }
  int64_t total = 0;
  for (int32_t i = 0; i < num_blocks; ++i) total += block_total[i];
  if (total == 0) {
    const bool residual = q.size || certain >= 0;
    return residual ? draw(batch, b, n, p, Row<Draft>{}, -1) : -1;
  }
  int64_t rest = threshold(sample_word(batch, b, n), total);
  int32_t i = 0;
  while (rest >= block_total[i]) rest -= block_total[i++];
  for (int32_t v = i * BLOCK;; ++v) {
    rest -= fixed_point(p[v] - (v == certain ? 1.0f : q[v]));
    if (rest < 0) return v;
  }
}

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
    const Row<Target> p{target_row<Target>(batch, b, n), batch.vocab_size};
    Row<Draft> q{};
    int64_t certain = -1;
    if (verdict == Verdict::rejected) {
      if (batch.draft_probs) {
        q = {draft_row<Draft>(batch, b, n), batch.draft_vocab_size};
      } else {
        certain = draft_token(batch, b, n);
      }
    }
    token = draw(batch, b, n, p, q, certain);
  }
  write_result(batch, b, n, token);
}

// Call f(Target{}, Draft{}) with the types of the distributions.
template <class Function>
void with_types(const Batch& batch, Function f) {
  const auto with_draft = [&](auto target) {
    switch (batch.draft_dtype) {
      case Dtype::float32: return f(target, float{});
      case Dtype::bfloat16: return f(target, BFloat16{});
      case Dtype::float16: return f(target, Float16{});
    }
  };
  switch (batch.dtype) {
    case Dtype::float32: return with_draft(float{});
    case Dtype::bfloat16: return with_draft(BFloat16{});
    case Dtype::float16: return with_draft(Float16{});
  }
}

}  // namespace

// Requests [begin, end); different ranges may run on different threads.
void fused_cpu(const Batch& batch, int32_t begin, int32_t end) {
  with_types(batch, [&](auto target, auto draft) {
    for (int32_t b = begin; b < end; ++b) decide<decltype(target), decltype(draft)>(batch, b);
  });
}

}  // namespace rsk
