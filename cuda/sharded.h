// The sampler on one rank of a group that shares out the vocabulary: arguments and entry points.
//
// What a message holds is described in rsk/sampler/slices.py and slice_laws.py, where PyTorch
// operators do the same; ranks may mix the two.
#pragma once

#include "row_law.h"

#if defined(RSK_CUDA)
#include <cuda_runtime.h>
#endif

namespace rsk::sharded {

// The words of a header that are not sums over arguments, and those that all ranks must agree on.
constexpr int32_t HEADER = 22, GIVEN = 14, PURPOSE = 0, LAYOUT = 1, FIRST_MEANT = 7, LATE = 3;

constexpr int32_t LONGEST_LIST = 128;  // of the k largest logits, that find the threshold of top-k

struct Call {
  Batch batch;           // this rank's columns: S_p and S_q are its vocabulary sizes
  int32_t start, width;  // it holds tokens [start, start + width)
  int32_t all_tokens;    // V, of all ranks: the larger of
  int32_t all_target, all_draft;  // V_p and V_q
  int32_t rank, ranks;
  int32_t words;         // length of a message
  int32_t offset;        // in it, of the numbers: HEADER in the first message of a call, else 0
  int64_t header[GIVEN];

  // Where the rows are logits:
  bool is_logits;
  Filters filters;
  int32_t listed;          // length of the lists that find the threshold of top-k, or 0
  const RowLaw *laws;      // [B, K+1], of the target's rows; null until they are known
  const RowLaw *draft_laws;  // [B, K]
};

// Rows whose laws are to be found: the target's, then the draft's unless their laws are given.
RSK_FUNCTION int32_t rows_of_target(const Call& call) {
  return call.batch.batch_size * (call.batch.spec_len + 1);
}
RSK_FUNCTION int32_t rows_without_law(const Call& call) {
  const bool of_draft = call.batch.draft_probs && !call.draft_laws;
  return rows_of_target(call) + (of_draft ? call.batch.batch_size * call.batch.spec_len : 0);
}

// Pieces of a row, each summed by one warp; their sums are kept until the token is looked for.
constexpr int32_t PIECE = 2048;  // columns
RSK_FUNCTION int32_t pieces_of(const Call& call) {
  const int32_t pieces = (call.width + PIECE - 1) / PIECE;
  return pieces < 1 ? 1 : pieces;
}

// Numbers in the first message about a row of logits.
RSK_FUNCTION int32_t opening_words(const Call& call) {
  return 1 + (call.listed ? (call.listed + 2) / 2 : 0);
}

#if defined(RSK_CUDA)
// Each writes a message of `words` words, or what the messages of all ranks, [R, words], say.

// The largest logit of each row, and the lists.
cudaError_t opening(const Call& call, int64_t* message, cudaStream_t stream);

// The total weight of each row that min-p keeps.
cudaError_t weights(const Call& call, const int64_t* openings, int64_t* message,
                    cudaStream_t stream);

// The laws, from these two; with lists, from the openings alone.
cudaError_t laws(const Call& call, const int64_t* openings, const int64_t* weights, RowLaw* laws,
                 RowLaw* draft_laws, cudaStream_t stream);

// Where the walk over the drafts may end, and the totals of the rows there. sums: [B, K+1, pieces,
// 2], of p and of the residual.
cudaError_t totals(const Call& call, int64_t* message, int64_t* sums, cudaStream_t stream);

// The token, if this rank holds it, else -1, of each request; and num_accepted. `first` are the
// first messages, with the headers: if these do not agree they are copied to `differing`, which the
// host can read.
cudaError_t find(const Call& call, const int64_t* first, const int64_t* totals,
                 const int64_t* sums, int64_t* tokens, int64_t* num_accepted, int64_t* differing,
                 cudaStream_t stream);

// The result, from the tokens of all ranks.
cudaError_t result(const Batch& batch, const int64_t* found, cudaStream_t stream);
#endif

}  // namespace rsk::sharded
