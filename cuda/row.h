// The row that the last token of a request is drawn from, with weights max(p - q, 0).
#pragma once

#include <cuda_runtime.h>

#include "specification.h"

namespace rsk {

// What q is in such a row: 0 everywhere; a row of its own; or, if the draft has no probabilities, 1
// at the draft token, whose number is the value, and 0 elsewhere. One register has to do for it.
enum class Draft : int32_t { none = -1, row = -2 };

template <class Probability>
struct Row {
  RowPointer<Probability> p;
  RowPointer<Probability> q;  // only if draft is Draft::row
  Draft draft;
  int32_t size;

  // In fixed point. `finite` becomes false if a probability is not finite.
  __device__ int64_t weight(int32_t v, bool& finite) const {
    const float target = widen(p[v]);
    const float other = has_q() ? widen(q[v]) : v == certain() ? 1.0f : 0.0f;
    finite &= is_finite(target) && is_finite(other);
    return fixed_point(target - other);
  }

  __device__ bool has_q() const { return draft == Draft::row; }
  __device__ bool is_residual() const { return draft != Draft::none; }

  // The token at which q is 1, or a number that no token has.
  __device__ int32_t certain() const { return (int32_t)draft; }
};

// The same pointer, to global memory, but the compiler no longer knows of what it was computed:
// else it keeps those parts in registers, to compute it anew at each use.
template <class T>
__device__ __forceinline__ T computed(T pointer) {
#if defined(__CUDACC__)
  if constexpr (std::is_pointer_v<T>) {
    asm("" : "+l"(pointer));
    __builtin_assume(__isGlobal(pointer));
  }
#endif
  return pointer;
}

// The walk over the drafts of a request.
struct Walk {
  int32_t n;        // accepted draft tokens
  Verdict verdict;  // why the walk ended: never `accepted`
};

template <class Probability>
__device__ Row<Probability> row_to_sample(const Batch& batch, int32_t b, const Walk& walk) {
  Row<Probability> row;
  row.p = computed(target_row<Probability>(batch, b, walk.n));
  row.q = computed(draft_row<Probability>(batch, b, walk.n));
  row.size = num_columns<Probability>(batch);
  row.draft = Draft::none;
  if (walk.verdict == Verdict::rejected) {
    row.draft = batch.draft_probs ? Draft::row : (Draft)draft_token(batch, b, walk.n);
  }
  return row;
}

}  // namespace rsk
