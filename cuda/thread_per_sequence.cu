// Step 1: one launch for the whole batch. Each thread walks one request, like the Python loop.
//
// Gone are the launch and the synchronisation per token: the early exit happens inside the kernel.
// It is slow all the same. One thread reads V probabilities one after another, waiting for most of
// them, and the 32 threads of a warp read 32 different rows, so that each load fetches 32 sectors
// of memory to use 4 bytes of each. A batch of 64 keeps 64 threads busy out of some 270,000.
#include "kernels.h"
#include "launch.h"
#include "row.h"

namespace rsk::thread_per_sequence {

constexpr int32_t THREADS = 32;  // small blocks spread the few requests over many multiprocessors

template <class Probability>
__global__ void kernel(Batch batch) {
  const int32_t b = (int32_t)(blockIdx.x * THREADS + threadIdx.x);
  if (b >= batch.batch_size) return;

  int32_t n = 0;
  Verdict verdict = Verdict::ended;
  for (; n < batch.spec_len; ++n) {
    verdict = judge<Probability>(batch, b, n);
    if (verdict != Verdict::accepted) break;
  }

  Row<Probability> row = row_to_sample<Probability>(batch, b, {n, verdict});
  int64_t token = -1;
  while (verdict != Verdict::invalid) {
    // region one row
    int64_t total = 0;
    bool finite = true;
    for (int32_t v = 0; v < row.size; ++v) total += row.weight(v, finite);
    if (!finite) break;
    if (total > 0) {
      int64_t rest = threshold(sample_word(batch, b, n), total);
      for (token = 0;; ++token) {
        rest -= row.weight((int32_t)token, finite);
        if (rest < 0) break;
      }
      break;
    }
    // endregion
    if (!row.is_residual()) break;  // nothing to sample from
    row.draft = Draft::none;        // the residual is empty: sample from p
  }
  write_result(batch, b, n, token);
}

cudaError_t launch(const Batch& batch, void*, cudaStream_t stream) {
  const auto config = launch_config((batch.batch_size + THREADS - 1) / THREADS, THREADS, stream);
  return with_probability_type(batch, [&](auto probability) {
    return cudaLaunchKernelEx(&config, kernel<decltype(probability)>, batch);
  });
}

const Kernel entry{launch, nullptr};

}  // namespace rsk::thread_per_sequence
