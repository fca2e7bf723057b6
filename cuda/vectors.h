// Vector types of the processor that is compiled for, through the extension of GCC and Clang; other
// compilers, and -DRSK_SCALAR, get vectors of one element. And rows read with them.
//
// A comparison of vectors is a mask: all bits of a lane where it holds, none where it does not.
#pragma once

#include <algorithm>
#include <type_traits>

#include "specification.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace rsk {
namespace {

#if (defined(__GNUC__) || defined(__clang__)) && !defined(RSK_SCALAR)
#define RSK_HAS_VECTORS 1
#else
#define RSK_HAS_VECTORS 0
#endif

#if RSK_HAS_VECTORS

#define RSK_NOT_INLINE [[gnu::noinline]]  // inline, the rare end of a row slows down all of it

#if defined(__AVX512F__)
constexpr int32_t WIDTH = 16;
#elif defined(__AVX__)
constexpr int32_t WIDTH = 8;
#else
constexpr int32_t WIDTH = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Shorts __attribute__((vector_size(2 * WIDTH)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t PackedShorts __attribute__((vector_size(4 * WIDTH)));

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

inline Floats all(float x) { return Floats{} + x; }
template <class Vector>
inline Vector larger(Vector x, Vector y) { return x > y ? x : y; }
template <class Vector>
inline Vector smaller(Vector x, Vector y) { return x < y ? x : y; }
inline Ints is_at_least(Floats x, Floats y) { return x >= y; }
inline Ints is_at_least(Ints x, Ints y) { return x >= y; }
inline Ints is_equal(Ints x, Ints y) { return x == y; }
inline Ints is_nan(Floats x) { return x != x; }
inline Ints truncated(Floats x) { return __builtin_convertvector(x, Ints); }
inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }

inline Ints load_shorts(const void* x) {
  Shorts y;
  memcpy(&y, x, sizeof y);
  return __builtin_convertvector(y, Ints);
}

// All lanes of a vector in one number, by halves: f combines vectors of any length.
template <class Element, int32_t count = WIDTH, class Vector, class Function>
inline Element reduce(Vector x, Function f) {
  if constexpr (count == 1) {
    Element lane;
    memcpy(&lane, &x, sizeof lane);
    return lane;
  } else {
    typedef Element Half __attribute__((vector_size(sizeof(Element) * count / 2)));
    Half low, high;
    memcpy(&low, &x, sizeof low);
    memcpy(&high, (const char*)&x + sizeof low, sizeof high);
    return reduce<Element, count / 2>(f(low, high), f);
  }
}

#else

#define RSK_NOT_INLINE

constexpr int32_t WIDTH = 1;
typedef float Floats;
typedef int32_t Ints;

inline Floats as_floats(Ints x) { return float_of((uint32_t)x); }
inline Ints as_ints(Floats x) { return (int32_t)bits_of(x); }
inline Floats all(float x) { return x; }
inline Floats larger(Floats x, Floats y) { return x > y ? x : y; }
inline Floats smaller(Floats x, Floats y) { return x < y ? x : y; }
inline Ints is_at_least(Floats x, Floats y) { return -(x >= y); }
inline Ints is_at_least(Ints x, Ints y) { return -(x >= y); }
inline Ints is_equal(Ints x, Ints y) { return -(x == y); }
inline Ints is_nan(Floats x) { return -(x != x); }
inline Ints truncated(Floats x) { return (int32_t)x; }
inline Floats to_floats(Ints x) { return (float)x; }
inline Ints load_shorts(const void* x) { return *(const uint16_t*)x; }

template <class Element, class Function>
inline Element reduce(Element x, Function) {
  return x;
}

#endif

// min(max(x, 0), 1), as integers: the bits of floats of one sign order as the floats do, and there is
// an instruction for it. Of NaN it is 0 or 1.
inline Floats clamped(Floats x) {
  const Ints bits = as_ints(x), unit = as_ints(all(1.0f));
  const Ints positive = bits > 0 ? bits : Ints{};
  return as_floats(positive < unit ? positive : unit);
}

inline Floats absolute(Floats x) { return as_floats(as_ints(x) & 0x7FFFFFFF); }

constexpr int32_t PAIR = 2 * WIDTH;

struct Pair {
  Floats a, b;
};

inline Floats load(const float* x) {
  Floats y;
  memcpy(&y, x, sizeof y);
  return y;
}

inline Ints load_bits(const void* x) {
  Ints y;
  memcpy(&y, x, sizeof y);
  return y;
}

// widen() of specification.h for 16 bits a lane, without branches.
inline Floats widen_halves(Ints bits) {
  const Ints sign = (bits & 0x8000) << 16;
  const Ints magnitude = (bits & 0x7FFF) << 13;
  const Ints normal = magnitude + (112 << 23);
  const Ints one = Ints{} + (113 << 23);
  const Ints subnormal = as_ints(as_floats(magnitude + one) - as_floats(one));
  const Ints is_normal = is_at_least(magnitude, Ints{} + (0x0400 << 13));
  const Ints is_special = is_at_least(magnitude, Ints{} + (0x7C00 << 13));
  const Ints widened = (subnormal & ~is_normal) | (normal & is_normal) |
                       (is_special & 0x7F800000);
  return as_floats(widened | sign);
}

// WIDTH elements in their order.
inline Floats load(const BFloat16* x) { return as_floats(load_shorts(x) << 16); }

// Whether the processor has an instruction that widens float16.
#if RSK_HAS_VECTORS && defined(__AVX__) && defined(__F16C__)
constexpr bool WIDENS_HALVES = true;

inline Floats load(const Float16* x) {
  Shorts bits;
  memcpy(&bits, x, sizeof bits);
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps((__m256i)bits);
#else
  return (Floats)_mm256_cvtph_ps((__m128i)bits);
#endif
}

#else
constexpr bool WIDENS_HALVES = false;
inline Floats load(const Float16* x) { return widen_halves(load_shorts(x)); }
#endif

// Whether what load_pair() loads comes apart in the even and the odd elements, which takes fewer
// instructions (the low half of a lane is the even one: little endian).
template <class Element>
constexpr bool COMES_APART =
    sizeof(Element) == 2 && !(WIDENS_HALVES && std::is_same_v<Element, Float16>);

template <class Element>
inline Pair take_apart(Ints bits) {
  if constexpr (std::is_same_v<Element, BFloat16>)
    return {as_floats(bits << 16), as_floats(bits & (int32_t)0xFFFF0000u)};
  else
    return {widen_halves(bits & 0xFFFF), widen_halves(bits >> 16 & 0xFFFF)};
}

// 2 * WIDTH elements, on request in their order.
template <bool in_order, class Element>
inline Pair load_pair(const Element* x) {
  if constexpr (in_order || !COMES_APART<Element>) return {load(x), load(x + WIDTH)};
  else return take_apart<Element>(load_bits(x));
}

// Where the element in lane i of a pair that is not in order stands.
template <class Element>
constexpr int32_t place_in_pair(int32_t i) {
  return COMES_APART<Element> ? 2 * (i % WIDTH) + i / WIDTH : i;
}

// The lanes of a vector as an array.
template <class Element, int32_t count = WIDTH>
struct Lanes {
  Element lane[count];

  template <class Vector>
  explicit Lanes(Vector x) { memcpy(lane, &x, sizeof lane); }
  Element operator[](int32_t i) const { return lane[i]; }
};

inline int64_t sum_lanes(Ints x) {
  const auto sum = [](auto a, auto b) { return a + b; };  // of halves of 16 bits: no overflow
  return ((int64_t)reduce<int32_t>(x >> 16, sum) << 16) + reduce<int32_t>(x & 0xFFFF, sum);
}

inline bool any(Ints x) {
  return reduce<int32_t>(x, [](auto a, auto b) { return a | b; }) != 0;
}

inline float largest_lane(Floats x) {
  return reduce<float>(x, [](auto a, auto b) { return a > b ? a : b; });
}

// A sum of weights floor(w * 2^42), 0 <= w <= 1, of which at most MAX_ADDED are added.
constexpr int32_t MAX_ADDED = 128;  // vectors; a lane's sums stay below 2^31

#if RSK_HAS_VECTORS

// region split sum
// Converting a float to int64 one at a time keeps a compiler from vectorising. So w is split, exactly,
// in the nearest multiple of 2^-18 and the rest, which is at most 2^-19 either way, and both are
// summed as int32. The rest times 2^42 is an integer, unless w is below 2^-19; then the multiple is 0
// and the rest is w. So to truncate the rest is to round it down, even where it is negative.
struct FixedPointSum {
  Bits multiples{};  // the bits of floats between 48 and 49, so in units of 2^-18; modulo 2^32
  Ints rests{};      // in units of 2^-42
  uint32_t count = 0;

  void add(Floats w) {
    const Floats magic = all(48.0f);  // the floats between 32 and 64 are multiples of 2^-18
    const Floats sum = w + magic;
    multiples += (Bits)sum;
    rests += truncated((w - (sum - magic)) * 4398046511104.0f);
    ++count;
  }
  int64_t total() const {
    const Bits without_magic = multiples - count * bits_of(48.0f);
    return (sum_lanes((Ints)without_magic) << 24) + sum_lanes(rests);
  }
};
// endregion

#else

struct FixedPointSum {
  int64_t sum = 0;

  void add(float w) { sum += fixed_point(w); }
  int64_t total() const { return sum; }
};

#endif

// Where in [begin, end) the running sum of weights first exceeds `rest`: a part of at most PAIR, and
// `rest` less what is before it. weight(begin, end) is the sum of a part.
template <class Weight>
int32_t find_pair(int32_t begin, int32_t end, int64_t& rest, Weight weight) {
  while (end - begin > PAIR) {
    const int32_t middle = begin + (end - begin + 2 * PAIR - 1) / (2 * PAIR) * PAIR;
    const int64_t first = weight(begin, middle);
    if (rest < first) {
      end = middle;
    } else {
      rest -= first;
      begin = middle;
    }
  }
  return begin;
}

// Call f with a value of the type.
template <class Function>
auto with_type(Dtype dtype, Function f) {
  switch (dtype) {
    case Dtype::bfloat16: return f(BFloat16{});
    case Dtype::float16: return f(Float16{});
    default: return f(float{});
  }
}

template <class Element>
struct Elements {
  Element lane[PAIR];
};

// A row in memory, and what is to be thought behind its end.
template <class Element>
struct Row {
  const Element* data;
  int32_t size;
  Element padding;

  float operator[](int64_t v) const { return widen(v < size ? data[v] : padding); }

  // 2 * WIDTH elements; in_order: element i in lane i of both vectors together.
  template <bool in_order>
  Pair pair(int32_t v) const {
    if (v + PAIR <= size) return load_pair<in_order>(data + v);
    return load_pair<in_order>(elements(v).lane);
  }

  // Where 2 * WIDTH elements are: in the row, or in `room` if it ends before.
  const Element* place(int32_t v, Elements<Element>& room) const {
    if (v + PAIR <= size) return data + v;
    room = elements(v);
    return room.lane;
  }

  RSK_NOT_INLINE Elements<Element> elements(int32_t v) const {
    Elements<Element> rest;
    for (int32_t i = 0; i < PAIR; ++i) rest.lane[i] = v + i < size ? data[v + i] : padding;
    return rest;
  }
};

}  // namespace
}  // namespace rsk
