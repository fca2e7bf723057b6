// The arguments of one call that starts from logits.
#pragma once

#include "row_law.h"

namespace rsk {

// The rows that `batch` points to hold logits: target_probs is [B, K+1, V_p] and draft_probs, unless
// null, [B, K, V_q]. To sample from rows of logits [B, V] they are the target's, with K = 0 and the
// stream DRAFT. To write the probabilities of R rows a request, they are the target's, with
// K = R - 1.
struct LogitsBatch {
  Batch batch;
  Filters filters;           // of target and draft alike
  const RowLaw* draft_laws;  // [B, K], contiguous; null: from the draft's logits
  RowLaw* laws;              // [B]: where the laws of the rows sampled from are written; null: not
                             // wanted. Only with K = 0.
};

}  // namespace rsk
