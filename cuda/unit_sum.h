// Sums of weights max(p - q, 0) of rows whose values are all between 0 and 1, as those of
// distributions are, in half the instructions that any rows take (vectors.h).
//
// - max(p - q, 0) is p - min(p, q) there. Numbers without a sign order as their bits do, so the
//   smaller one is found before 16 bits are widened, and the weight needs no bounds.
// - A running sum is a float between START and 2 * START, and so a multiple of a unit. What an
//   addition rounds away is found exactly by two subtractions (Dekker 1971), and summed as an integer.
//
// Whether all values and sums were in bounds is known at the end: are_exact().
#pragma once

#include "vectors.h"

namespace rsk {
namespace {

#if RSK_HAS_VECTORS

#if defined(__AVX512F__)

// The floats between 2 and 4 are multiples of 2^-22, and a rest is at most 2^-23 either way. AVX-512
// can round one addition down: the floats between 2^-19 and 2^-18 are multiples of 2^-42, and some
// rests can be added there before their bits are read. Half of the additions are left to the
// multipliers, as x * 1 + y: the adders alone would be what everything waits for.
constexpr int32_t UNIT = 22, MAX_UNITS = 2048;
constexpr float START = 2.0f;

inline Floats difference(Floats x, Floats y) {
  return (Floats)_mm512_fmsub_ps((__m512)x, (__m512)all(1.0f), (__m512)y);
}

struct Rests {
  static constexpr float START = 1.5f / (1 << 19);  // so that up to eight stay in bounds
  Floats sum = all(START);

  void add(Floats x) {
    constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    sum = (Floats)_mm512_fmadd_round_ps((__m512)x, (__m512)all(1.0f), (__m512)sum, down);
  }
  Bits bits() const { return (Bits)sum; }
};

#else

// The floats between 32 and 64 are multiples of 2^-18, and a rest is at most 2^-19 either way. Times
// 2^42 it is an integer, unless the weight is below 2^-19; then the rest is the weight. So to truncate
// a rest is to round it down, even where it is negative.
constexpr int32_t UNIT = 18, MAX_UNITS = MAX_ADDED;
constexpr float START = 32.0f;

inline Floats difference(Floats x, Floats y) { return x - y; }

struct Rests {
  static constexpr float START = 0.0f;
  Bits sum{};

  void add(Floats x) { sum += (Bits)truncated(x * all(4398046511104.0f)); }
  Bits bits() const { return sum; }
};

#endif

// A vector of elements as they are in memory, as unsigned integers.
template <class Element>
using Packed = std::conditional_t<sizeof(Element) == 4, Bits, PackedShorts>;

template <class Element>
constexpr uint32_t BITS_OF_ONE = sizeof(Element) == 4                      ? 0x3F800000
                                 : std::is_same_v<Element, BFloat16> ? 0x3F80
                                                                     : 0x3C00;
template <class Element>
constexpr uint32_t BITS_OF_TWO = sizeof(Element) == 4 ? 0x40000000 : 0x4000;

template <class Element>
inline Packed<Element> load_packed(const Element* x) {
  Packed<Element> y;
  memcpy(&y, x, sizeof y);
  return y;
}

// A value that is used several times and loaded once: else GCC loads it for each use.
inline Bits in_register(Bits x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#endif
  return x;
}

// How far a sum has come: of at most MAX_UNITS vectors of weights, on top of what was before. It has
// no initialisers, since most of an array of these is not used.
struct UnitSum {
  Pair sum;
  Bits rests;  // modulo 2^32, each with the bits of Rests::START
  uint32_t count;
  int64_t before;

  static UnitSum after(int64_t before) { return {{all(START), all(START)}, Bits{}, 0, before}; }

  // At most two pairs.
  template <int32_t pairs>
  [[gnu::always_inline]] void add(const Pair (&weights)[pairs]) {
    Rests rest;
    for (const Pair& weight : weights) {
      const Pair next{sum.a + weight.a, sum.b + weight.b};
      rest.add(weight.a - difference(next.a, sum.a));
      rest.add(weight.b - difference(next.b, sum.b));
      sum = next;
    }
    rests += rest.bits();
    ++count;
  }

  int64_t total() const {
    const Bits units = (Bits)sum.a + (Bits)sum.b - 2 * bits_of(START);
    const Bits whole_rests = rests - count * bits_of(Rests::START);
    return before + (sum_lanes((Ints)units) << (42 - UNIT)) + sum_lanes((Ints)whole_rests);
  }
};

// The weights of 2 * WIDTH elements at a time, and what tells whether they were weights.
template <bool has_q, class Element>
class UnitWeights {
 public:
  // The weights of p without q, or of p - q.
  [[gnu::always_inline]] Pair read(const Element* target, const Element* draft) {
    if constexpr (sizeof(Element) == 4) {
      const Packed<Element> a = in_register(load_packed(target));
      const Packed<Element> b = in_register(load_packed(target + WIDTH));
      if constexpr (!has_q) return note(a), note(b), Pair{(Floats)a, (Floats)b};
      const Packed<Element> less_a = smaller_of(a, in_register(load_packed(draft)));
      const Packed<Element> less_b = smaller_of(b, in_register(load_packed(draft + WIDTH)));
      return {(Floats)a - (Floats)less_a, (Floats)b - (Floats)less_b};
    } else {
      const Packed<Element> p = load_packed(target);
      if constexpr (!has_q) return note(p), widened(p);
      const Pair more = widened(p), less = widened(smaller_of(p, load_packed(draft)));
      return {more.a - less.a, more.b - less.b};
    }
  }

  // Whether `total`, of all weights that were read, is their sum. Without q the largest element is
  // known; with it, all bits that one had: then none was below 0, nor was one 2 or more, and of a
  // weight above 1 the total would tell.
  bool are_exact(int64_t total) const {
    constexpr int64_t one = (int64_t)1 << 42;
    constexpr int32_t lanes = sizeof(Packed<Element>) / sizeof(Element);
    using Lane = std::conditional_t<sizeof(Element) == 4, uint32_t, uint16_t>;
    const uint32_t bits = reduce<Lane, lanes>(bits_, [](auto x, auto y) { return combined(x, y); });
    return has_q ? bits < BITS_OF_TWO<Element> && total <= one
                 : bits <= BITS_OF_ONE<Element> && total <= one + one / 2;
  }

 private:
  template <class Value>
  static Value combined(Value x, Value y) {
    if constexpr (has_q) return (Value)(x | y);
    else return larger(x, y);
  }

  void note(Packed<Element> x) { bits_ = combined(bits_, x); }

  Packed<Element> smaller_of(Packed<Element> p, Packed<Element> q) {
    note(p | q);
    return smaller(p, q);
  }

  static Pair widened(Packed<Element> x) {
    if constexpr (COMES_APART<Element>) return take_apart<Element>((Ints)x);
    Element elements[PAIR];
    memcpy(elements, &x, sizeof x);
    return load_pair<true>(elements);
  }

  Packed<Element> bits_{};
};

#else

struct UnitSum {
  int64_t before;

  static UnitSum after(int64_t before) { return {before}; }
  int64_t total() const { return before; }
};

#endif

}  // namespace
}  // namespace rsk
