// From logits to probabilities: the law of a row, in four numbers, and the probability of a token
// from them. Nothing here writes a row: a kernel computes p[v] from x[v] wherever it needs it.
//
// Every floating-point operation is rounded on its own, so that all devices agree to the last bit:
// a product and a sum must never become one fused operation. That is what rounded_product() and
// rounded_sum() are for; on the CPU -ffp-contract=off does the same.
#pragma once

#include "specification.h"

namespace rsk {

// ------------------------------------------------------------------------------- parameters

// What turns logits into probabilities, one value a request. Null pointers: the value for all.
struct Filters {
  const float* temperature;  // [B]; 0: greedy
  const void* top_k;         // [B], int64 or int32; 0: off
  const float* top_p;        // [B]; 1: off
  const float* min_p;        // [B]; 0: off
  int64_t strides[4];        // of the four, in elements
  int64_t all_top_k;
  float all_temperature, all_top_p, all_min_p;
  bool wide_top_k;           // top_k is int64
};

struct Filter {
  float temperature, top_p, min_p;
  int64_t top_k;
};

RSK_FUNCTION bool is_valid(const Filter& f) {  // a NaN is not
  const bool temperature_is =
      f.temperature == 0.0f || (f.temperature >= 0x1p-20f && f.temperature <= 0x1p20f);
  return temperature_is && f.top_k >= 0 && f.top_p >= 0.0f && f.top_p <= 1.0f &&
         f.min_p >= 0.0f && f.min_p <= 1.0f;
}

RSK_FUNCTION Filter filter_of(const Filters& all, int32_t b) {
  Filter f;
  f.temperature =
      all.temperature ? all.temperature[b * all.strides[0]] : all.all_temperature;
  const int64_t i = b * all.strides[1];
  f.top_k = !all.top_k         ? all.all_top_k
            : all.wide_top_k ? ((const int64_t*)all.top_k)[i]
                             : ((const int32_t*)all.top_k)[i];
  f.top_p = all.top_p ? all.top_p[b * all.strides[2]] : all.all_top_p;
  f.min_p = all.min_p ? all.min_p[b * all.strides[3]] : all.all_min_p;
  return f;
}

// ------------------------------------------------------------------------------- arithmetic

RSK_FUNCTION float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

RSK_FUNCTION float rounded_sum(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// c of the specification: exponents of two for a unit of x.
RSK_FUNCTION float scale_of(float temperature) {
  return (float)(1.4426950408889634 / (double)temperature);
}

// e = 2^((x - m) c), relative to the maximum m of the row: in [0, 1], and 1 at the maximum.
RSK_FUNCTION float relative_weight(float x, float maximum, float scale) {
  const float y = rounded_product(rounded_sum(x, -maximum), scale);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  const float shifted = rounded_sum(y, magic);
  const float f = rounded_sum(y, -rounded_sum(shifted, -magic));  // exact, in [-1/2, 1/2]
  float r = 0x1.5bba14p-10f;
  r = rounded_sum(rounded_product(r, f), 0x1.3cea88p-7f);
  r = rounded_sum(rounded_product(r, f), 0x1.c6b752p-5f);
  r = rounded_sum(rounded_product(r, f), 0x1.ebf9bcp-3f);
  r = rounded_sum(rounded_product(r, f), 0x1.62e42ap-1f);
  r = rounded_sum(rounded_product(r, f), 1.0f);
  // The integer stands in the lowest bits of `shifted`; it is added to the exponent of r.
  const uint32_t scaled = bits_of(r) + (bits_of(shifted) << 23);
  return y < -42.0f ? 0.0f : float_of(scaled);
}

// floor(e * 2^42) for e in [0, 1].
RSK_FUNCTION int64_t weight_of(float relative) { return (int64_t)(relative * 4398046511104.0f); }

// The least total weight that top-p keeps, of a total of what top-k kept.
RSK_FUNCTION int64_t mass_to_keep(float top_p, int64_t total) {
  const double wanted = (double)top_p * (double)total;  // one rounding each
  int64_t mass = (int64_t)wanted;
  if ((double)mass < wanted) ++mass;
  return mass < 1 ? 1 : mass;
}

// ------------------------------------------------------------------------------- a row's law

// maximum: m. scale: c; infinity for a greedy row. threshold: the least x that top-k and top-p
// keep (-infinity: all); of a greedy row the index of its token. normalizer: s; NaN for an invalid
// row, and then nothing else counts.
struct RowLaw {
  float maximum, scale, threshold, normalizer;
};

RSK_FUNCTION RowLaw invalid_law() { return {0.0f, 0.0f, 0.0f, float_of(0x7FC00000u)}; }

RSK_FUNCTION RowLaw greedy_law(float maximum, int32_t index) {
  return {maximum, float_of(0x7F800000u), (float)index, 1.0f};
}

// s for the total weight Z of what is kept.
RSK_FUNCTION float normalizer_of(int64_t total) {
  return (float)(4398046511104.0 / (double)total);
}

RSK_FUNCTION bool is_invalid(const RowLaw& law) { return law.normalizer != law.normalizer; }
RSK_FUNCTION bool is_greedy(const RowLaw& law) { return law.scale == float_of(0x7F800000u); }

// p[v] of a valid row, from x[v].
RSK_FUNCTION float probability(const RowLaw& law, float min_p, float x, int32_t v) {
  if (is_greedy(law)) return (float)v == law.threshold ? 1.0f : 0.0f;
  if (!(x >= law.threshold)) return 0.0f;
  const float e = relative_weight(x, law.maximum, law.scale);
  return e >= min_p ? rounded_product(e, law.normalizer) : 0.0f;
}

}  // namespace rsk
