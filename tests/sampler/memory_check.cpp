// Runs every kernel in the emulator on heap buffers of exactly the size they need, so that
// AddressSanitizer sees the first byte read or written outside. Compiled by test_emulator.py.
#include <stdio.h>

#include <vector>

#include "block_per_sequence.cu"
#include "cluster.cu"
#include "best_kernel.cu"
#include "loads_in_flight.cu"
#include "split_vocabulary.cu"
#include "thread_per_sequence.cu"

namespace {

struct Sizes {
  int32_t spec_len, vocab_size, draft_vocab_size;  // draft_vocab_size 0: no draft_probs
};

// Rows of probabilities, none of them padded; some token ids are out of range.
template <class Target, class Draft>
void check(rsk::KernelName kernel, rsk::Dtype dtype, Target p, rsk::Dtype draft_dtype, Draft q,
           Sizes sizes, bool accept) {
  const int32_t batch_size = 2;
  const size_t rows = (size_t)batch_size * sizes.spec_len;
  std::vector<Target> target((rows + batch_size) * sizes.vocab_size, p);
  std::vector<Draft> draft(rows * sizes.draft_vocab_size, q);
  std::vector<int32_t> tokens(rows, sizes.vocab_size - 1);
  if (!accept && rows) {
    target[sizes.vocab_size - 1] = Target{};
    tokens[rows - 1] = sizes.vocab_size;
  }
  std::vector<int64_t> out(rows + batch_size), num_accepted(batch_size), seeds(batch_size, 7);
  rsk::Batch batch{};
  batch.draft_tokens = tokens.data();
  batch.draft_probs = sizes.draft_vocab_size ? draft.data() : nullptr;
  batch.target_probs = target.data();
  batch.seeds = seeds.data();
  batch.tokens = out.data();
  batch.num_accepted = num_accepted.data();
  batch.draft_tokens_stride = sizes.spec_len;
  batch.draft_probs_stride[0] = (int64_t)sizes.spec_len * sizes.draft_vocab_size;
  batch.draft_probs_stride[1] = sizes.draft_vocab_size;
  batch.target_probs_stride[0] = (int64_t)(sizes.spec_len + 1) * sizes.vocab_size;
  batch.target_probs_stride[1] = sizes.vocab_size;
  batch.batch_size = batch_size;
  batch.spec_len = sizes.spec_len;
  batch.vocab_size = sizes.vocab_size;
  batch.draft_vocab_size = sizes.draft_vocab_size ? sizes.draft_vocab_size : sizes.vocab_size;
  batch.sample_stream = rsk::SAMPLE;
  batch.dtype = dtype;
  batch.draft_dtype = sizes.draft_vocab_size ? draft_dtype : dtype;
  const rsk::Kernel& chosen = rsk::kernel_of(kernel);
  std::vector<char> workspace(chosen.workspace_bytes ? chosen.workspace_bytes(batch) : 0);
  if (chosen.launch(batch, workspace.data(), nullptr) != cudaSuccess) {
    fprintf(stderr, "kernel %d failed\n", (int)kernel);
    exit(1);
  }
}

}  // namespace

// With an argument, one case of each kernel: enough for a machine that is itself emulated.
int main(int argc, char**) {
  using rsk::Dtype;
  const rsk::Float16 half{0x3000};
  int count = 0;
  for (int32_t i = 0; i < rsk::NUM_KERNELS; ++i) {
    const auto kernel = (rsk::KernelName)i;
    if (argc > 1) {
      check(kernel, Dtype::float32, 0.5f, Dtype::float32, 0.5f, {2, 129, 129}, false);
      ++count;
      continue;
    }
    for (const int32_t v : {1, 7, 128, 129, 1031}) {
      for (const bool accept : {false, true}) {
        for (const int32_t spec_len : {0, 2, 33}) {
          const Sizes sizes{spec_len, v, spec_len == 2 ? v : 0};
          check(kernel, Dtype::float32, 0.5f, Dtype::float32, 0.5f, sizes, accept);
          check(kernel, Dtype::float16, half, Dtype::float16, half, sizes, accept);
          count += 2;
        }
        check(kernel, Dtype::float32, 0.5f, Dtype::float32, 0.5f, {2, v, v + 5}, accept);
        check(kernel, Dtype::float16, half, Dtype::float32, 0.5f, {2, v + 9, v}, accept);
        count += 2;
      }
    }
  }
  printf("checked %d cases\n", count);
}
