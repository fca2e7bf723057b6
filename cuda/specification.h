// The arithmetic of the rejection sampler: what every kernel computes, on the CPU and on the GPU.
//
// Each step is an integer operation, an exact floating-point one, or one correctly rounded float32
// subtraction. That is why every kernel returns the same tokens bit for bit, however it splits and
// orders the work. Compile with -ffp-contract=off and never with -ffast-math.
//
// Notation: B requests, K draft positions, V words in the vocabulary (V_p in the target's, V_q in
// the draft's); p is the target's distribution, q the draft's, d a draft token.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "random_words.h"

namespace rsk {

// ---------------------------------------------------------------------------------- one batch

enum class Dtype : int32_t { float32, bfloat16, float16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The arguments of one call. Strides count elements; the last dimension of each tensor has stride 1.
struct Batch {
  const void* draft_tokens;      // [B, K], int64 or int32
  const void* draft_probs;       // [B, K, V_q]; null: q is 1 at the draft token and 0 elsewhere
  const void* target_probs;      // [B, K+1, V_p]
  const int64_t* seeds;          // [B]; null: request b uses seed + b
  const int64_t* positions;      // [B]; null: every request uses position
  int64_t* tokens;               // [B, K+1], contiguous
  int64_t* num_accepted;         // [B]; null: not wanted
  int64_t seed, position;
  int64_t draft_tokens_stride;   // from request to request
  int64_t draft_probs_stride[2];   // from request to request, from position to position
  int64_t target_probs_stride[2];
  int32_t batch_size, spec_len;
  int32_t vocab_size;            // V_p, the target's
  int32_t draft_vocab_size;      // V_q, the draft's; without draft_probs V_p
  int32_t sample_stream;         // the stream that the last token is drawn with
  Dtype dtype, draft_dtype;      // of the target's and of the draft's distributions
  bool wide_tokens;              // draft tokens are int64
};

// ------------------------------------------------------------------------------- random words

// The seed and the position that a request's random words are made of.
RSK_FUNCTION uint64_t seed_of(const Batch& batch, int32_t b) {
  return batch.seeds ? (uint64_t)batch.seeds[b] : (uint64_t)batch.seed + (uint64_t)b;
}

RSK_FUNCTION uint64_t position_of(const Batch& batch, int32_t b) {
  return (uint64_t)(batch.positions ? batch.positions[b] : batch.position);
}

// ------------------------------------------------------------------------------ probabilities

RSK_FUNCTION uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

RSK_FUNCTION float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

RSK_FUNCTION bool is_finite(float x) { return (bits_of(x) & 0x7F800000u) != 0x7F800000u; }

// Widening to float32 is exact.
RSK_FUNCTION float widen(float x) { return x; }
RSK_FUNCTION float widen(BFloat16 x) { return float_of((uint32_t)x.bits << 16); }
RSK_FUNCTION float widen(Float16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = (uint32_t)(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = (uint32_t)(x.bits & 0x7FFFu) << 13;
  if (magnitude >= 0x7C00u << 13) return float_of(sign | magnitude | 0x7F800000u);  // inf, NaN
  if (magnitude < 0x0400u << 13)  // subnormal: 1.m - 1, both scaled by 2^-14, is exact
    return float_of(sign | bits_of(float_of(magnitude + (113u << 23)) - float_of(113u << 23)));
  return float_of(sign | (magnitude + (112u << 23)));
#endif
}

// 1 in the type of the argument.
RSK_FUNCTION float one(float) { return 1.0f; }
RSK_FUNCTION BFloat16 one(BFloat16) { return {0x3F80}; }
RSK_FUNCTION Float16 one(Float16) { return {0x3C00}; }

// Target and draft may differ in type and in vocabulary size. Mostly they do not: then code is
// compiled for their type, and a row is a pointer. Else it is compiled for Mixed: a row looks at
// its type at each read, and where it is shorter than the other one it is 0.
struct Mixed {};

struct MixedRow {
  const void* probs;
  int64_t begin;  // of the row, in elements
  int32_t size;
  Dtype dtype;

  RSK_METHOD float operator[](int64_t v) const {
    if (v >= size) return 0.0f;
    switch (dtype) {
      case Dtype::float32: return ((const float*)probs)[begin + v];
      case Dtype::bfloat16: return widen(((const BFloat16*)probs)[begin + v]);
      case Dtype::float16: return widen(((const Float16*)probs)[begin + v]);
    }
    return 0.0f;
  }
};

template <class Probability>
using RowPointer = std::conditional_t<std::is_same_v<Probability, Mixed>, MixedRow,
                                      const Probability*>;

RSK_FUNCTION bool is_mixed(const Batch& batch) {
  return batch.draft_vocab_size != batch.vocab_size || batch.draft_dtype != batch.dtype;
}

// Columns of the larger distribution.
template <class Probability = Mixed>
RSK_FUNCTION int32_t num_columns(const Batch& batch) {
  if (!std::is_same_v<Probability, Mixed>) return batch.vocab_size;
  return batch.vocab_size > batch.draft_vocab_size ? batch.vocab_size : batch.draft_vocab_size;
}

// Row k of request b.
template <class Probability>
RSK_FUNCTION RowPointer<Probability> target_row(const Batch& batch, int32_t b, int32_t k) {
  const int64_t* stride = batch.target_probs_stride;
  if constexpr (std::is_same_v<Probability, Mixed>) {
    return {batch.target_probs, b * stride[0] + k * stride[1], batch.vocab_size, batch.dtype};
  } else {
    return (const Probability*)batch.target_probs + b * stride[0] + k * stride[1];
  }
}

template <class Probability>
RSK_FUNCTION RowPointer<Probability> draft_row(const Batch& batch, int32_t b, int32_t k) {
  const int64_t* stride = batch.draft_probs_stride;
  if constexpr (std::is_same_v<Probability, Mixed>) {
    return {batch.draft_probs, b * stride[0] + k * stride[1], batch.draft_vocab_size,
            batch.draft_dtype};
  } else {
    return (const Probability*)batch.draft_probs + b * stride[0] + k * stride[1];
  }
}

RSK_FUNCTION int64_t draft_token(const Batch& batch, int32_t b, int32_t k) {
  const int64_t i = b * batch.draft_tokens_stride + k;
  return batch.wide_tokens ? ((const int64_t*)batch.draft_tokens)[i]
                           : ((const int32_t*)batch.draft_tokens)[i];
}

// -------------------------------------------------------------------------------------- accept

enum class Verdict : int32_t { accepted, rejected, ended, invalid };

// The coin u of draft token k of request b, in [0, 1). It has 29 bits and q 24, so their product is
// exact in a double, and p = q > 0 always accepts.
RSK_FUNCTION double coin(const Batch& batch, int32_t b, int32_t k) {
  const uint64_t word = random_word(seed_of(batch, b), position_of(batch, b) + (uint64_t)k, COIN);
  return (double)(int32_t)(word >> 35) * (1.0 / (1 << 29));
}

// Judge draft token k of request b, on its own: it counts only if all before it were accepted.
template <class Probability>
RSK_FUNCTION Verdict judge(const Batch& batch, int32_t b, int32_t k) {
  // First, so that a GPU computes it while it waits for the token and its probabilities.
  const double u = coin(batch, b, k);
  const int64_t d = draft_token(batch, b, k);
  if (d == -1) return Verdict::ended;
  if (d < 0 || d >= num_columns<Probability>(batch)) return Verdict::invalid;
  const float p = widen(target_row<Probability>(batch, b, k)[d]);
  const float q = batch.draft_probs ? widen(draft_row<Probability>(batch, b, k)[d]) : 1.0f;
  if (!is_finite(p) || !is_finite(q)) return Verdict::invalid;
  return u * (double)q < (double)p ? Verdict::accepted : Verdict::rejected;
}

// -------------------------------------------------------------------------------------- sample

// floor(min(max(x, 0), 1) * 2^42): integer sums of these are exact in any order, and V <= 2^20 of
// them cannot overflow. NaN becomes 0; a row that holds one is refused elsewhere.
RSK_FUNCTION int64_t fixed_point(float x) {
  const float w = x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
  return (int64_t)(w * 4398046511104.0f);
}

// floor(R * total / 2^62) for the upper 62 bits R of a word and 0 <= total <= 2^62; it is less than
// total. The token is the first whose running sum of weights exceeds it.
RSK_FUNCTION int64_t threshold(uint64_t word, int64_t total) {
  const uint64_t fraction = word & ~3ull;  // R * 4, so that the division by 2^64 is a high word
#if defined(__CUDA_ARCH__)
  return (int64_t)__umul64hi(fraction, (uint64_t)total);
#else
  const uint64_t f_high = fraction >> 32, f_low = fraction & 0xFFFFFFFFull;
  const uint64_t t_high = (uint64_t)total >> 32, t_low = (uint64_t)total & 0xFFFFFFFFull;
  const uint64_t carry = f_high * t_low + (f_low * t_low >> 32);
  const uint64_t middle = f_low * t_high + (carry & 0xFFFFFFFFull);
  return (int64_t)(f_high * t_high + (carry >> 32) + (middle >> 32));
#endif
}

// The word that the last token of request b is sampled with, after n accepted drafts.
RSK_FUNCTION uint64_t sample_word(const Batch& batch, int32_t b, int32_t n) {
  const uint64_t t = position_of(batch, b) + (uint64_t)n;
  return random_word(seed_of(batch, b), t, batch.sample_stream);
}

// -------------------------------------------------------------------------------------- result

// What is written in column k of the tokens of request b: n accepted drafts, the sampled token, -1.
// token < 0 marks an invalid request.
RSK_FUNCTION int64_t output_token(
    const Batch& batch, int32_t b, int32_t k, int32_t n, int64_t token) {
  if (token < 0 || k > n) return -1;
  return k == n ? token : draft_token(batch, b, k);
}

RSK_FUNCTION void write_result(const Batch& batch, int32_t b, int32_t n, int64_t token) {
  int64_t* row = batch.tokens + (int64_t)b * (batch.spec_len + 1);
  for (int32_t k = 0; k <= batch.spec_len; ++k) row[k] = output_token(batch, b, k, n, token);
  if (batch.num_accepted) batch.num_accepted[b] = token < 0 ? -1 : n;
}

}  // namespace rsk
