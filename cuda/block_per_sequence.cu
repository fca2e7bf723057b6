// Step 2: one block per request. Its threads share the row, and neighbours read neighbours.
//
// The row is cut into pieces, one for each warp. In a piece the 32 threads of the warp read 32
// probabilities that lie side by side: 128 bytes, all of which are used. Each thread leaves the sum
// of what it has read in shared memory; after a barrier they are added up, and after another one
// every thread knows the total of each piece, hence which of them the token is in. That piece is
// cut and summed in the same way, and so on, until it is a single token.
#include "block.h"
#include "kernels.h"
#include "launch.h"
#include "row.h"

namespace rsk::block_per_sequence {

constexpr int32_t THREADS = 256;
constexpr int32_t WARPS = THREADS / 32;

struct Shared {
  int64_t sum[THREADS];  // of what each thread has read; -1: a probability is not finite
  int64_t total[WARPS];  // of each piece, likewise
};

// The sum of some numbers, or -1 if one of them is -1.
__device__ inline int64_t add_up(const int64_t* numbers, int32_t count) {
  int64_t sum = 0;
  bool finite = true;
  for (int32_t i = 0; i < count; ++i) {
    sum += numbers[i];
    finite &= numbers[i] >= 0;
  }
  return finite ? sum : -1;
}

template <class Probability>
__global__ void kernel(Batch batch) {
  Shared& shared = shared_memory<Shared>();
  const int32_t b = (int32_t)blockIdx.x, thread = (int32_t)threadIdx.x;
  const int32_t warp = thread / 32, lane = thread % 32;

  // All threads walk the drafts: they read the same numbers, which costs no more than for one.
  int32_t n = 0;
  Verdict verdict = Verdict::ended;
  for (; n < batch.spec_len; ++n) {
    verdict = judge<Probability>(batch, b, n);
    if (verdict != Verdict::accepted) break;
  }

  Row<Probability> row = row_to_sample<Probability>(batch, b, {n, verdict});
  int64_t token = -1, rest = -1;
  int32_t begin = 0, end = row.size;  // the token is in between
  while (verdict != Verdict::invalid && token < 0) {
    // region cut the row
    const int32_t piece = (end - begin + WARPS - 1) / WARPS;  // its length
    const int32_t first = begin + warp * piece;
    const int32_t behind = first + piece < end ? first + piece : end;
    int64_t sum = 0;
    bool finite = true;
    for (int32_t v = first + lane; v < behind; v += 32) sum += row.weight(v, finite);
    shared.sum[thread] = finite ? sum : -1;
    __syncthreads();
    if (lane == 0) shared.total[warp] = add_up(shared.sum + 32 * warp, 32);
    // endregion
    __syncthreads();

    if (rest < 0) {  // this was the whole row
      const int64_t total = add_up(shared.total, WARPS);
      if (total < 0 || (total == 0 && !row.is_residual())) break;  // nothing to sample from
      if (total == 0) {
        row.draft = Draft::none;  // the residual is empty: sample from p
        continue;
      }
      rest = threshold(sample_word(batch, b, n), total);
    }
    // region choose a piece
    int32_t chosen = 0;
    while (rest >= shared.total[chosen]) rest -= shared.total[chosen++];
    begin += chosen * piece;
    end = begin + piece < end ? begin + piece : end;
    if (end - begin == 1) token = begin;
    // endregion
  }
  if (thread == 0) write_result(batch, b, n, token);
}

cudaError_t launch(const Batch& batch, void*, cudaStream_t stream) {
  const auto config = launch_config(batch.batch_size, THREADS, stream);
  return with_probability_type(batch, [&](auto probability) {
    return cudaLaunchKernelEx(&config, kernel<decltype(probability)>, batch);
  });
}

const Kernel entry{launch, nullptr};

}  // namespace rsk::block_per_sequence
