// The binding: PyTorch operators on one side, plain pointers on the other. It owns the tensors, the
// checks that keep a kernel inside them, and the registration; binding.h is all it knows of PyTorch.
// Here are the operators from probabilities, in binding_logits.cpp those from logits.
//
// Compiled for the CPU as it is; with RSK_CUDA for the GPU; with RSK_CUDA and RSK_EMULATED for the
// CUDA kernels on the CPU. The first defines the operators' schemas, so it is loaded first.
#include "arguments.h"
#include "binding.h"
#include "kernels.h"

namespace {

using rsk::Arguments;
using rsk::Batch;
using rsk::Refusal;
using rsk::Tensor;

// A kernel is an index in rsk.KERNELS, or this: the one that suits the batch.
constexpr int64_t BEST = -1;

Refusal run(int64_t kernel, const Batch& batch, const Tensor& like) {
  if (batch.batch_size == 0) return nullptr;
#if defined(RSK_CUDA)
  return rsk::launch_on_device(like, [&](cudaStream_t stream) -> Refusal {
    const rsk::KernelName name =
        kernel == BEST ? rsk::best_kernel(batch) : (rsk::KernelName)kernel;
    const rsk::Kernel& chosen = rsk::kernel_of(name);
    Tensor workspace;
    if (chosen.workspace_bytes)
      RSK_TRY(rsk::reserve(workspace, chosen.workspace_bytes(batch), like));
    return rsk::check_launch(chosen.launch(batch, workspace.data, stream));
  });
#else
  (void)kernel, (void)like;
  return rsk::on_threads(batch.batch_size, batch.vocab_size, [&](int64_t begin, int64_t end) {
    rsk::fused_cpu(batch, (int32_t)begin, (int32_t)end);
  });
#endif
}

Refusal decide(int64_t kernel, Arguments& next, StableIValue* results) {
  const Tensor draft_tokens = next.tensor(), draft_probs = next.optional_tensor();
  const Tensor target_probs = next.tensor(), seed = next.optional_tensor();
  const int64_t seed0 = next.integer();
  const Tensor position = next.optional_tensor();
  const int64_t position0 = next.integer();

#if defined(RSK_CUDA)
  RSK_EXPECT(kernel >= BEST && kernel < rsk::NUM_KERNELS, "kernel: expected -1 to %d, got %lld",
             (int)rsk::NUM_KERNELS - 1, (long long)kernel);
#endif
  RSK_TRY(rsk::check_tensor(target_probs, "target_probs", 3, target_probs));
  Batch batch{};
  RSK_TRY(rsk::fill(batch, target_probs, "target_probs", seed, seed0, position, position0));
  Tensor tokens, num_accepted;
  RSK_TRY(rsk::fill_drafts(batch, draft_tokens, draft_probs, "draft_probs", target_probs,
                           "target_probs", tokens, num_accepted));
  RSK_TRY(run(kernel, batch, target_probs));
  results[0] = tokens.give_away();
  results[1] = num_accepted.give_away();
  return nullptr;
}

RSK_OPERATOR Refusal rejection_sample(StableIValue* stack) noexcept {
  Arguments next(stack);
  return decide(BEST, next, stack);
}

#if defined(RSK_CUDA)

RSK_OPERATOR Refusal launch(StableIValue* stack) noexcept {
  Arguments next(stack);
  const int64_t kernel = next.integer();
  return decide(kernel, next, stack);
}

#endif

// Drawing a token from a row is the same rule with no draft (K = 0) and a stream of its own.
RSK_OPERATOR Refusal sample(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Tensor probs = next.tensor(), seed = next.optional_tensor();
  const int64_t seed0 = next.integer();
  const Tensor position = next.optional_tensor();
  const int64_t position0 = next.integer();

  RSK_TRY(rsk::check_tensor(probs, "probs", 2, probs));
  Batch batch{};
  RSK_TRY(rsk::fill(batch, probs, "probs", seed, seed0, position, position0));
  Tensor tokens;
  RSK_TRY(tokens.become({batch.batch_size}, aoti_torch_dtype_int64(), probs));
  batch.tokens = (int64_t*)tokens.data;
  RSK_TRY(run(BEST, batch, probs));
  stack[0] = tokens.give_away();
  return nullptr;
}

#if defined(RSK_EMULATED)

const bool is_registered = rsk::implement("CPU", {{"launch", rsk::boxed<launch>}});

#elif defined(RSK_CUDA)

const bool is_registered = rsk::implement("CUDA", {{"rejection_sample", rsk::boxed<rejection_sample>},
                                                   {"sample", rsk::boxed<sample>},
                                                   {"launch", rsk::boxed<launch>}});

#else

const bool is_registered =
    rsk::define({
        "rejection_sample(Tensor draft_tokens, Tensor? draft_probs, Tensor target_probs, "
        "Tensor? seed, int seed0, Tensor? position, int position0) -> (Tensor, Tensor)",
        "sample(Tensor probs, Tensor? seed, int seed0, Tensor? position, int position0) -> Tensor",
        "launch(int kernel, Tensor draft_tokens, Tensor? draft_probs, Tensor target_probs, "
        "Tensor? seed, int seed0, Tensor? position, int position0) -> (Tensor, Tensor)",
    }) &&
    rsk::implement("CPU", {{"rejection_sample", rsk::boxed<rejection_sample>},
                           {"sample", rsk::boxed<sample>}});

#endif

}  // namespace
