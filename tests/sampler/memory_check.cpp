// Runs every kernel in the emulator on heap buffers of exactly the size they need, so that
// AddressSanitizer sees the first byte read or written outside. Compiled by test_emulator.py.
#include <stdio.h>

#include <vector>

#include "block_per_sequence.cu"
#include "cluster.cu"
#include "fused.cu"
#include "split_vocabulary.cu"
#include "thread_per_sequence.cu"

namespace {

// Rows of V probabilities each, none of them padded; some token ids are out of range.
template <class Probability>
void check(rsk::Dtype dtype, Probability some, int32_t kernel, int32_t vocab_size,
           int32_t spec_len, bool with_draft_probs, bool accept) {
  const int32_t batch_size = 2;
  const size_t rows = (size_t)batch_size * spec_len;
  std::vector<Probability> target((rows + batch_size) * vocab_size, some);
  std::vector<Probability> draft(rows * vocab_size, some);
  std::vector<int32_t> tokens(rows, vocab_size - 1);
  if (!accept && rows) {
    target[vocab_size - 1] = Probability{};
    tokens[rows - 1] = vocab_size;
  }
  std::vector<int64_t> out(rows + batch_size), num_accepted(batch_size), seeds(batch_size, 7);
  rsk::Batch batch{};
  batch.draft_tokens = tokens.data();
  batch.draft_probs = with_draft_probs ? draft.data() : nullptr;
  batch.target_probs = target.data();
  batch.seeds = seeds.data();
  batch.tokens = out.data();
  batch.num_accepted = num_accepted.data();
  batch.draft_tokens_stride = spec_len;
  batch.draft_probs_stride[0] = (int64_t)spec_len * vocab_size;
  batch.target_probs_stride[0] = (int64_t)(spec_len + 1) * vocab_size;
  batch.draft_probs_stride[1] = batch.target_probs_stride[1] = vocab_size;
  batch.batch_size = batch_size;
  batch.spec_len = spec_len;
  batch.vocab_size = batch.draft_vocab_size = vocab_size;
  batch.sample_stream = rsk::SAMPLE;
  batch.dtype = batch.draft_dtype = dtype;
  const rsk::Kernel chosen = rsk::kernel_at(kernel);
  std::vector<char> workspace(chosen.workspace_bytes ? chosen.workspace_bytes(batch) : 0);
  if (chosen.launch(batch, workspace.data(), nullptr) != cudaSuccess) {
    fprintf(stderr, "kernel %d failed\n", kernel);
    exit(1);
  }
}

}  // namespace

int main() {
  int count = 0;
  for (int32_t kernel = 0; kernel < rsk::NUM_KERNELS; ++kernel) {
    for (const int32_t vocab_size : {1, 7, 128, 129, 1031}) {
      for (const int32_t spec_len : {0, 2, 33}) {
        for (const bool accept : {false, true}) {
          const bool with_draft_probs = spec_len == 2;
          check(rsk::Dtype::float32, 0.5f, kernel, vocab_size, spec_len, with_draft_probs, accept);
          check(rsk::Dtype::float16, rsk::Float16{0x3000}, kernel, vocab_size, spec_len,
                with_draft_probs, accept);
          count += 2;
        }
      }
    }
  }
  printf("checked %d cases\n", count);
}
