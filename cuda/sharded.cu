// One rank's part of the sampler where the vocabulary is shared out, from probabilities or from
// logits whose laws are known: the totals of its columns, then the token, if it is among them.
//
// A warp sums a piece of one row pair. Totals are integers, so the warps of a row add theirs to the
// message in any order, and keep the sums of the pieces: when the totals of all ranks are known, one
// warp for each request finds the piece that the token is in and reads that again.
#include "launch.h"
#include "sliced_row.h"

namespace rsk::sharded {

// Why the walk over the drafts ends, as in slices.py; and what only this rank knows of a draft.
enum Kind : int32_t { REJECTED = 0, INVALID = 1, ENDED = 2, ACCEPTED = 3, ELSEWHERE = 4 };
constexpr int32_t KINDS = 4;

// Judge draft token k of request b, if its probabilities are in our columns.
template <class Probability, class Means>
__device__ Kind judge_ours(const Call& call, int32_t b, int32_t k) {
  const Batch& batch = call.batch;
  const int64_t d = draft_token(batch, b, k);
  if (d == -1) return ENDED;
  if (d < 0 || d >= call.all_tokens) return INVALID;
  const int32_t column = (int32_t)d - call.start;
  if (column < 0 || column >= call.width) return ELSEWHERE;
  const float p = probability_at(target_slice<Probability>(call, b, k),
                                 Means::of_target(call, b, k), column);
  const float q = batch.draft_probs ? probability_at(draft_slice<Probability>(call, b, k),
                                                     Means::of_draft(call, b, k), column)
                                    : 1.0f;
  if (!is_finite(p) || !is_finite(q)) return INVALID;
  return coin(batch, b, k) * (double)q < (double)p ? ACCEPTED : REJECTED;
}

// The walk as far as this rank can tell: where it ends at the latest, and what is known of draft
// token k, which lies at or before that.
struct OurWalk {
  int32_t end;
  Kind why, at_k;
};

template <class Probability, class Means>
__device__ OurWalk walk_ours(const Call& call, int32_t b, int32_t k, int32_t lane) {
  OurWalk walk{call.batch.spec_len, ENDED, ENDED};
  for (int32_t begin = 0; begin < call.batch.spec_len; begin += 32) {
    const int32_t mine = begin + lane;
    const Kind kind =
        mine < call.batch.spec_len ? judge_ours<Probability, Means>(call, b, mine) : ELSEWHERE;
    const Kind at_k = (Kind)__shfl_sync(ALL_LANES, (int)kind, k - begin);
    if (begin <= k && k < begin + 32 && k < call.batch.spec_len) walk.at_k = at_k;
    const uint32_t stopped = __ballot_sync(ALL_LANES, kind <= ENDED);
    if (stopped) {
      const int32_t first = __ffs(stopped) - 1;
      walk.end = begin + first;
      walk.why = (Kind)__shfl_sync(ALL_LANES, (int)kind, first);
      break;
    }
  }
  return walk;
}

// -------------------------------------------------------------------------------------- totals

// A row pair of which a warp has a piece. Without q, q is 0 everywhere.
template <class Probability, class Means>
struct Pair {
  SlicedRow<Probability> p, q;
  Means of_p, of_q;
  bool has_q;

  __device__ static Pair make(const Call& call, int32_t b, int32_t k, bool has_q) {
    const auto p = target_slice<Probability>(call, b, k);
    const Means means = Means::of_target(call, b, k);
    if (!has_q) return {p, p, means, means, false};
    return {p, draft_slice<Probability>(call, b, k), means, Means::of_draft(call, b, k), true};
  }

  __device__ bool is_usual() const { return of_p.is_usual() && (!has_q || of_q.is_usual()); }
  __device__ float p_at(int32_t column) const { return probability_at(p, of_p, column); }
  __device__ float q_at(int32_t column) const {
    return has_q ? probability_at(q, of_q, column) : 0.0f;
  }
};

// The sums of the weights max(p, 0) and max(p - q, 0), and whether all values are finite.
struct Sums {
  WeightSum p, residual;
  float p_is_not_finite = 0.0f, q_is_not_finite = 0.0f;  // NaN then

  __device__ void look_at(float p_value, float q_value) {
    p_is_not_finite = __fmaf_rn(p_value, 0.0f, p_is_not_finite);
    q_is_not_finite = __fmaf_rn(q_value, 0.0f, q_is_not_finite);
  }
};

// A lane's sums over a piece. Without q both sums are the same, and only p's is made.
template <class Probability, class Means, bool HAS_Q>
__device__ void sum_piece(const Pair<Probability, Means>& pair, int32_t begin, int32_t end,
                          int32_t lane, Sums& sums) {
  for (int32_t start = begin; start < end; start += TILE) {
    Values<Probability> p, q;  // both are asked for before either is waited for
    pair.p.template load<Means::IS_LOGITS>(start, lane, p);
    if constexpr (HAS_Q) pair.q.template load<Means::IS_LOGITS>(start, lane, q);
#pragma unroll
    for (int32_t i = 0; i < p.COUNT; ++i) {
      const float p_value = pair.of_p.usual(p.at(i));
      sums.p.add(p_value);
      float q_value = 0.0f;
      if constexpr (HAS_Q) {
        q_value = pair.of_q.usual(q.at(i));
        sums.residual.add(p_value - q_value);
      }
      if (!Means::IS_LOGITS) sums.look_at(p_value, q_value);
    }
  }
}

// The same for any laws, a column at a time.
template <class Probability, class Means>
__device__ void sum_unusual(const Pair<Probability, Means>& pair, int32_t begin, int32_t end,
                            int32_t lane, Sums& sums) {
#pragma unroll 1
  for (int32_t column = begin + lane; column < end; column += 32) {
    const float p = pair.p_at(column), q = pair.q_at(column);
    sums.p.add(p);
    if (pair.has_q) sums.residual.add(p - q);
    sums.look_at(p, q);
  }
}

template <class Probability, class Means>
__global__ void __launch_bounds__(32 * WARPS)
    totals_kernel(Call call, int64_t* message, int64_t* sums) {
  const Batch& batch = call.batch;
  const int32_t lane = (int32_t)threadIdx.x % 32;
  const int32_t warp = (int32_t)(blockIdx.x * WARPS + threadIdx.x / 32);
  const int32_t pieces = pieces_of(call), rows = batch.spec_len + 1;
  const int32_t row = warp / pieces, piece = warp % pieces;
  const int32_t b = row / rows, k = row % rows;
  const bool is_first = k == 0 && piece == 0;
  if (is_first && call.offset && (b < batch.batch_size || b == 0)) {
    write_header(call, message, b, lane);
  }
  if (b >= batch.batch_size) return;

  const OurWalk walk = walk_ours<Probability, Means>(call, b, k, lane);
  int64_t* numbers = message + call.offset + (int64_t)b * (2 * rows);
  if (is_first && lane == 0) numbers[0] = KINDS * walk.end + walk.why;
  if (k > walk.end) return;
  // At k the walk may end, and then the token is sampled from p or from the residual, unless we
  // know better.
  if (walk.at_k == ACCEPTED || walk.at_k == INVALID) return;
  const bool is_residual = walk.at_k != ENDED;

  const auto pair =
      Pair<Probability, Means>::make(call, b, k, is_residual && batch.draft_probs);
  const int32_t begin = piece * PIECE;
  const int32_t end = begin + PIECE < call.width ? begin + PIECE : call.width;
  Sums own;
  if (!pair.is_usual()) {
    sum_unusual(pair, begin, end, lane, own);
  } else if (pair.has_q) {
    sum_piece<Probability, Means, true>(pair, begin, end, lane, own);
  } else {
    sum_piece<Probability, Means, false>(pair, begin, end, lane, own);
  }
  const int64_t of_p = sum_over_warp(own.p.total());
  int64_t of_residual = pair.has_q ? sum_over_warp(own.residual.total()) : of_p;
  const bool p_is_finite = __all_sync(ALL_LANES, own.p_is_not_finite == 0.0f);
  const bool q_is_finite = __all_sync(ALL_LANES, own.q_is_not_finite == 0.0f);
  if (is_residual && !pair.has_q) {  // q is 1 at the draft token
    const int32_t column = (int32_t)draft_token(batch, b, k) - call.start;
    if (begin <= column && column < end) {
      const float at = pair.p_at(column);
      of_residual += fixed_point(at - 1.0f) - fixed_point(at);
    }
  }
  if (lane == 0) {
    int64_t* const kept = sums + ((int64_t)row * pieces + piece) * 2;
    kept[0] = of_p;
    kept[1] = of_residual;
    const unsigned long long refused = 1ull << 63;  // the sum of all is less
    add(numbers + 1 + k, of_p);
    if (!p_is_finite) atomicOr((unsigned long long*)numbers + 1 + k, refused);
    if (is_residual) {
      add(numbers + 1 + rows + k, of_residual);
      if (!p_is_finite || !q_is_finite) {
        atomicOr((unsigned long long*)numbers + 1 + rows + k, refused);
      }
    }
  }
}

// --------------------------------------------------------------------------------------- token

// Sums over the ranks of what each has in one place of its message.
struct OverRanks {
  int64_t before, own, all;  // those of ranks below this one, its own, and all
  bool is_finite;
};

__device__ OverRanks sum_over_ranks(const Call& call, const int64_t* place, int32_t lane) {
  OverRanks sums{0, 0, 0, true};
  for (int32_t r = lane; r < call.ranks; r += 32) {
    const int64_t x = place[(int64_t)r * call.words];
    sums.is_finite = sums.is_finite && x >= 0;
    sums.all += x;
    if (r < call.rank) sums.before += x;
    if (r == call.rank) sums.own = x;
  }
  return {sum_wide(sums.before), sum_wide(sums.own), sum_wide(sums.all),
          __all_sync(ALL_LANES, sums.is_finite) != 0};
}

// Whether the ranks' headers mean the same call.
__device__ bool headers_agree(const Call& call, const int64_t* first, int32_t lane) {
  static_assert(HEADER <= 32, "a lane looks at one word");
  const bool counts =
      lane == PURPOSE || lane == LAYOUT || (lane >= FIRST_MEANT && lane < HEADER);
  bool agrees = true;
  for (int32_t r = 1; r < call.ranks && counts; ++r) {
    agrees = agrees && first[(int64_t)r * call.words + lane] == first[lane];
  }
  return __all_sync(ALL_LANES, agrees);
}

// Keep the headers that do not agree for the host, unless a rank tells what it knew before.
__device__ void keep_headers(const Call& call, const int64_t* first, int64_t* differing,
                             int32_t lane) {
  bool is_late = false;
  for (int32_t r = lane; r < call.ranks; r += 32) {
    is_late = is_late || first[(int64_t)r * call.words + PURPOSE] == LATE;
  }
  if (__any_sync(ALL_LANES, is_late) || !differing) return;
  for (int32_t r = 0; r < call.ranks; ++r) {
    if (lane < HEADER) differing[r * HEADER + lane] = first[(int64_t)r * call.words + lane];
  }
}

// The piece whose sums, one in every second place, the token is in; `rest` becomes the threshold
// within it.
__device__ int32_t find_piece(const int64_t* sums, int32_t pieces, int64_t& rest, int32_t lane) {
  for (int32_t begin = 0; begin < pieces; begin += 32) {
    const int64_t own = begin + lane < pieces ? sums[2 * (begin + lane)] : 0;
    const int64_t running = running_sum(own, lane);
    const int64_t all = __shfl_sync(ALL_LANES, running, 31);
    if (rest < all) return begin + Totals{running, all}.choose(rest);
    rest -= all;
  }
  return -1;  // not reached: the sums of all pieces exceed `rest`
}

// The token's column: the first of the piece whose running sum of weights exceeds `rest`.
template <class Probability, class Means>
__device__ int32_t find_in_piece(const Pair<Probability, Means>& pair, int32_t certain,
                                 int32_t begin, int32_t end, int64_t rest, int32_t lane) {
  constexpr int32_t EACH = 8;  // columns of a lane, side by side
  for (int32_t start = begin; start < end; start += 32 * EACH) {
    const int32_t first = start + lane * EACH;
    int64_t weights[EACH], sum = 0;
#pragma unroll
    for (int32_t j = 0; j < EACH; ++j) {
      const int32_t column = first + j;
      const float q = column == certain ? 1.0f : pair.q_at(column);
      weights[j] = column < end ? fixed_point(pair.p_at(column) - q) : 0;
      sum += weights[j];
    }
    const int64_t running = running_sum(sum, lane);
    const int64_t all = __shfl_sync(ALL_LANES, running, 31);
    if (rest >= all) {
      rest -= all;
      continue;
    }
    int64_t within = rest - (running - sum);  // negative in the lanes behind the token's
    int32_t column = first;
#pragma unroll
    for (int32_t j = 0; j < EACH; ++j) {
      within -= weights[j];
      column += within >= 0;
    }
    const int32_t finder = __ffs(__ballot_sync(ALL_LANES, running > rest)) - 1;
    return __shfl_sync(ALL_LANES, column, finder);
  }
  return -1;  // not reached: the sum over the piece exceeds `rest`
}

template <class Probability, class Means>
__global__ void __launch_bounds__(32 * WARPS)
    find_kernel(Call call, const int64_t* first, const int64_t* totals, const int64_t* sums,
                int64_t* tokens, int64_t* num_accepted, int64_t* differing) {
  const Batch& batch = call.batch;
  const int32_t lane = (int32_t)threadIdx.x % 32;
  const int32_t b = (int32_t)(blockIdx.x * WARPS + threadIdx.x / 32);
  if (b >= batch.batch_size && b > 0) return;
  const bool agree = headers_agree(call, first, lane);
  if (!agree && b == 0) keep_headers(call, first, differing, lane);
  if (b >= batch.batch_size) return;

  const int32_t rows = batch.spec_len + 1;
  const int64_t* numbers = totals + call.offset + (int64_t)b * (2 * rows);
  int64_t stop = INT64_MAX;
  for (int32_t r = lane; r < call.ranks; r += 32) {
    const int64_t x = numbers[(int64_t)r * call.words];
    stop = x < stop ? x : stop;
  }
  for (int32_t step = 16; step > 0; step /= 2) {
    const int64_t other = __shfl_xor_sync(ALL_LANES, stop, step);
    stop = other < stop ? other : stop;
  }
  // What other ranks send is not to be trusted where the headers differ.
  const int32_t n = agree ? (int32_t)(stop / KINDS) : 0;
  const Kind why = agree ? (Kind)(stop % KINDS) : INVALID;
  OverRanks weights = sum_over_ranks(call, numbers + 1 + n, lane);
  bool valid = why != INVALID && weights.is_finite;
  bool is_residual = why == REJECTED;
  if (is_residual) {
    const OverRanks residual = sum_over_ranks(call, numbers + 1 + rows + n, lane);
    valid = valid && residual.is_finite;
    is_residual = residual.all > 0;  // else it is empty: sample from p
    if (is_residual) weights = residual;
  }
  valid = valid && weights.all > 0;
  int64_t token = -1;
  if (valid) {
    int64_t rest = threshold(sample_word(batch, b, n), weights.all) - weights.before;
    if (rest >= 0 && rest < weights.own) {
      const int32_t pieces = pieces_of(call);
      const int64_t* own = sums + ((int64_t)b * rows + n) * pieces * 2 + (is_residual ? 1 : 0);
      const int32_t begin = find_piece(own, pieces, rest, lane) * PIECE;
      const int32_t end = begin + PIECE < call.width ? begin + PIECE : call.width;
      const auto pair =
          Pair<Probability, Means>::make(call, b, n, is_residual && batch.draft_probs);
      const int32_t certain =
          is_residual && !pair.has_q ? (int32_t)draft_token(batch, b, n) - call.start : -1;
      token = call.start + find_in_piece(pair, certain, begin, end, rest, lane);
    }
  }
  if (lane == 0) {
    tokens[b] = token;
    num_accepted[b] = valid ? n : -1;
  }
}

__global__ void __launch_bounds__(256) result_kernel(Batch batch, const int64_t* found) {
  const int32_t columns = batch.spec_len + 1;
  const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= (int64_t)batch.batch_size * columns) return;
  const int32_t b = (int32_t)(i / columns), k = (int32_t)(i % columns);
  const int64_t n = batch.num_accepted[b];
  batch.tokens[i] = output_token(batch, b, k, (int32_t)n, n < 0 ? -1 : found[b]);
}

// ---------------------------------------------------------------------------------- the launches

cudaError_t totals(const Call& call, int64_t* message, int64_t* sums, cudaStream_t stream) {
  const cudaError_t error =
      cudaMemsetAsync(message, 0, (size_t)call.words * sizeof(int64_t), stream);
  if (error != cudaSuccess) return error;
  const int64_t rows = (int64_t)call.batch.batch_size * (call.batch.spec_len + 1);
  const int64_t warps = rows > 0 ? rows * pieces_of(call) : 1;
  const auto config = launch_config((warps + WARPS - 1) / WARPS, 32 * WARPS, stream);
  return with_type(call, [&](auto probability) {
    typedef decltype(probability) P;
    const auto kernel = call.is_logits ? totals_kernel<P, ByLaw> : totals_kernel<P, Plain>;
    return cudaLaunchKernelEx(&config, kernel, call, message, sums);
  });
}

cudaError_t find(const Call& call, const int64_t* first, const int64_t* totals,
                 const int64_t* sums, int64_t* tokens, int64_t* num_accepted, int64_t* differing,
                 cudaStream_t stream) {
  const int64_t warps = call.batch.batch_size > 0 ? call.batch.batch_size : 1;
  const auto config = launch_config((warps + WARPS - 1) / WARPS, 32 * WARPS, stream);
  return with_type(call, [&](auto probability) {
    typedef decltype(probability) P;
    const auto kernel = call.is_logits ? find_kernel<P, ByLaw> : find_kernel<P, Plain>;
    return cudaLaunchKernelEx(&config, kernel, call, first, totals, sums, tokens, num_accepted,
                              differing);
  });
}

cudaError_t result(const Batch& batch, const int64_t* found, cudaStream_t stream) {
  const int64_t size = (int64_t)batch.batch_size * (batch.spec_len + 1);
  if (size == 0) return cudaSuccess;
  const auto config = launch_config((size + 255) / 256, 256, stream);
  return cudaLaunchKernelEx(&config, result_kernel, batch, found);
}

}  // namespace rsk::sharded
