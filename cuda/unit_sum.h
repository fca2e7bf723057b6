// Sums of weights max(p - q, 0) of rows whose values are all between 0 and 1, as those of
// distributions are, in half the instructions that any rows take (vectors.h).
//
// - max(p - q, 0) is p - min(p, q) there. Numbers without a sign order as their bits do, so the
//   smaller one is found before 16 bits are widened, and the weight needs no bounds.
// - A running sum is a float between START and LIMIT, and so a multiple of a unit. What an addition
//   rounds away is found exactly by two subtractions (Dekker 1971), and summed as an integer.
//
// Whether all values and sums were in bounds is known at the end: is_exact().
#pragma once

#include "vectors.h"

namespace rsk {
namespace {

#if RSK_HAS_VECTORS

#if defined(__AVX512F__)

// The floats between 2 and 4 are multiples of 2^-22, and a rest is at most 2^-23 either way. AVX-512
// can round one addition down: the floats between 2^-19 and 2^-18 are multiples of 2^-42, and two
// rests can be added there before their bits are read. Half of the additions are left to the
// multipliers, as x * 1 + y: the adders alone would be what everything waits for.
constexpr int32_t UNIT = 22;
constexpr float START = 2.0f, LIMIT = 4.0f, REST_START = 1.5f / (1 << 19);

inline Floats difference(Floats x, Floats y) {
  return (Floats)_mm512_fmsub_ps((__m512)x, (__m512)all(1.0f), (__m512)y);
}

inline Floats sum_down(Floats x, Floats y) {
  constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  return (Floats)_mm512_fmadd_round_ps((__m512)x, (__m512)all(1.0f), (__m512)y, down);
}

inline Bits rests_of(Floats x, Floats y) {
  return (Bits)sum_down(sum_down(all(REST_START), x), y);
}

#else

// The floats between 32 and 64 are multiples of 2^-18, and a rest is at most 2^-19 either way. Times
// 2^42 it is an integer, unless the weight is below 2^-19; then the rest is the weight. So to truncate
// a rest is to round it down, even where it is negative.
constexpr int32_t UNIT = 18;
constexpr float START = 32.0f, LIMIT = 64.0f, REST_START = 0.0f;

inline Floats difference(Floats x, Floats y) { return x - y; }

inline Bits rests_of(Floats x, Floats y) {
  const Floats scale = all(4398046511104.0f);
  return (Bits)(truncated(x * scale) + truncated(y * scale));
}

#endif

// A vector of elements as they are in memory, as unsigned integers.
template <class Element>
using Packed = std::conditional_t<sizeof(Element) == 4, Bits, PackedShorts>;

template <class Element>
constexpr uint32_t BITS_OF_ONE = sizeof(Element) == 4                      ? 0x3F800000
                                 : std::is_same_v<Element, BFloat16> ? 0x3F80
                                                                     : 0x3C00;

// Sums of at most MAX_ADDED vectors of weights, one after the other.
template <class Element>
class UnitSum {
 public:
  // The weights of 2 * WIDTH elements. Without q, draft is not read.
  template <bool has_q>
  [[gnu::always_inline]] void add(const Element* target, const Element* draft) {
    if constexpr (sizeof(Element) == 4) {
      add_weights({weight<has_q>(target, draft), weight<has_q>(target + WIDTH, draft + WIDTH)});
    } else {
      const Packed<Element> p = load_packed(target);
      Pair weights = widened(p);
      if constexpr (has_q) {
        const Pair less = widened(smaller_of(p, load_packed(draft)));
        weights = {weights.a - less.a, weights.b - less.b};
      } else {
        largest_ = larger(largest_, p);
      }
      add_weights(weights);
    }
  }

  bool is_exact() const {
    constexpr int32_t count = sizeof(Packed<Element>) / sizeof(largest_[0]);
    using Lane = std::remove_cv_t<std::remove_reference_t<decltype(largest_[0])>>;
    const auto largest = [](auto x, auto y) { return x > y ? x : y; };
    return reduce<Lane, count>(largest_, largest) <= BITS_OF_ONE<Element> &&
           !any(is_at_least(largest_sum_, all(LIMIT)));
  }

  // The sum since the last call.
  int64_t take_total() {
    const Bits units = (Bits)sum_.a + (Bits)sum_.b - 2 * bits_of(START);
    const Bits rests = rests_ - count_ * bits_of(REST_START);
    largest_sum_ = larger(largest_sum_, larger(sum_.a, sum_.b));
    sum_ = {all(START), all(START)};
    rests_ = Bits{};
    count_ = 0;
    return (sum_lanes((Ints)units) << (42 - UNIT)) + sum_lanes((Ints)rests);
  }

 private:
  static Packed<Element> load_packed(const Element* x) {
    Packed<Element> y;
    memcpy(&y, x, sizeof y);
    return y;
  }

  static Pair widened(Packed<Element> x) {
    if constexpr (COMES_APART<Element>) return take_apart<Element>((Ints)x);
    Element elements[PAIR];
    memcpy(elements, &x, sizeof x);
    return load_pair<true>(elements);
  }

  Packed<Element> smaller_of(Packed<Element> p, Packed<Element> q) {
    largest_ = larger(larger(largest_, p), q);
    return smaller(p, q);
  }

  template <bool has_q>
  Floats weight(const Element* target, const Element* draft) {
    const Packed<Element> p = load_packed(target);
    if constexpr (has_q) return (Floats)p - (Floats)smaller_of(p, load_packed(draft));
    largest_ = larger(largest_, p);
    return (Floats)p;
  }

  [[gnu::always_inline]] void add_weights(Pair weights) {
    const Pair next{sum_.a + weights.a, sum_.b + weights.b};
    rests_ += rests_of(weights.a - difference(next.a, sum_.a), weights.b - difference(next.b, sum_.b));
    sum_ = next;
    ++count_;
  }

  Packed<Element> largest_{};
  Floats largest_sum_{};
  Pair sum_{all(START), all(START)};
  Bits rests_{};  // modulo 2^32, each with the bits of REST_START
  uint32_t count_ = 0;
};

#endif

}  // namespace
}  // namespace rsk
