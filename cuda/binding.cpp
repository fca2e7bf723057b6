// The binding: PyTorch operators on one side, plain pointers on the other. It owns the tensors, the
// checks that keep a kernel inside them, and the registration; binding.h is all it knows of PyTorch.
//
// Compiled for the CPU as it is; with RSK_CUDA for the GPU; with RSK_CUDA and RSK_EMULATED for the
// CUDA kernels on the CPU. The first defines the operators' schemas, so it is loaded first.
#include "binding.h"

#include "kernels.h"

namespace {

using rsk::Arguments;
using rsk::Batch;
using rsk::Refusal;
using rsk::Tensor;

// The public Python functions say what is wrong in full; these checks are the last line of defence,
// for whoever calls the operators directly.
Refusal check_tensor(const Tensor& tensor, const char* name, int64_t dims, const Tensor& like) {
  RSK_EXPECT(tensor.is_readable, "%s: expected a tensor with memory of its own", name);
  RSK_EXPECT(tensor.dims == dims, "%s: expected %d dimensions, got %d", name, (int)dims,
             (int)tensor.dims);
  bool has_elements = true;  // else its strides mean nothing
  for (int64_t i = 0; i < dims; ++i) has_elements = has_elements && tensor.sizes[i] > 0;
  RSK_EXPECT(tensor.strides[dims - 1] == 1 || tensor.sizes[dims - 1] <= 1 || !has_elements,
             "%s: expected the last dimension to be contiguous", name);
  RSK_EXPECT(
      tensor.device_type == like.device_type && tensor.device_index == like.device_index,
      "%s: expected the device of the other tensors", name);
  return nullptr;
}

Refusal per_request(const Tensor& tensor, const char* name, int64_t size, const Tensor& like,
                    const int64_t*& values) {
  if (!tensor) return nullptr;
  RSK_TRY(check_tensor(tensor, name, 1, like));
  RSK_EXPECT(tensor.dtype == aoti_torch_dtype_int64() && tensor.sizes[0] == size,
             "%s: expected int64 [%lld]", name, (long long)size);
  values = (const int64_t*)tensor.data;
  return nullptr;
}

Refusal dtype_of(const Tensor& probs, const char* name, rsk::Dtype& dtype) {
  if (probs.dtype == aoti_torch_dtype_float32()) dtype = rsk::Dtype::float32;
  else if (probs.dtype == aoti_torch_dtype_bfloat16()) dtype = rsk::Dtype::bfloat16;
  else if (probs.dtype == aoti_torch_dtype_float16()) dtype = rsk::Dtype::float16;
  else return rsk::refuse("%s: expected float32, bfloat16 or float16", name);
  return nullptr;
}

Refusal vocab_size_of(const Tensor& probs, int32_t& vocab_size) {
  const int64_t size = probs.sizes[probs.dims - 1];
  RSK_EXPECT(size >= 1 && size <= 1 << 20, "expected 1 <= V <= 2^20, got %lld", (long long)size);
  vocab_size = (int32_t)size;
  return nullptr;
}

// What the two operators have in common: p, the random numbers and the sizes.
Refusal fill(Batch& batch, const Tensor& probs, const Tensor& seed, int64_t seed0,
             const Tensor& position, int64_t position0) {
  const int64_t batch_size = probs.sizes[0];
  RSK_EXPECT(batch_size <= INT32_MAX, "expected at most 2^31 - 1 requests, got %lld",
             (long long)batch_size);
  RSK_TRY(vocab_size_of(probs, batch.vocab_size));
  RSK_TRY(dtype_of(probs, "probs", batch.dtype));
  batch.draft_vocab_size = batch.vocab_size;
  batch.draft_dtype = batch.dtype;
  RSK_TRY(per_request(seed, "seed", batch_size, probs, batch.seeds));
  RSK_TRY(per_request(position, "position", batch_size, probs, batch.positions));
  batch.target_probs = probs.data;
  batch.target_probs_stride[0] = probs.strides[0];
  batch.seed = seed0;
  batch.position = position0;
  batch.batch_size = (int32_t)batch_size;
  return nullptr;
}

// A kernel is an index in rsk.KERNELS, or this: the one that suits the batch.
constexpr int64_t BEST = -1;

#if defined(RSK_CUDA)

// Launch a kernel on the current stream of the tensors' device.
Refusal launch_on_device(int64_t index, const Batch& batch, const Tensor& like) {
  const rsk::KernelName name = index == BEST ? rsk::best_kernel(batch) : (rsk::KernelName)index;
  const rsk::Kernel& kernel = rsk::kernel_of(name);
  Tensor workspace;  // PyTorch frees it in the order of the stream
  if (kernel.workspace_bytes) {
    const int64_t words = (int64_t)(kernel.workspace_bytes(batch) + 7) / 8;
    RSK_TRY(workspace.become_int64({words}, like));
  }
  void* stream = nullptr;
#if !defined(RSK_EMULATED)
  RSK_TRY_TORCH(aoti_torch_get_current_cuda_stream(like.device_index, &stream));
#endif
  const cudaError_t error = kernel.launch(batch, workspace.data, (cudaStream_t)stream);
  RSK_EXPECT(error == cudaSuccess, "rsk: the launch failed: %s", cudaGetErrorString(error));
  return nullptr;
}

#endif

Refusal run(int64_t kernel, const Batch& batch, const Tensor& like) {
  if (batch.batch_size == 0) return nullptr;
#if defined(RSK_EMULATED)
  return launch_on_device(kernel, batch, like);
#elif defined(RSK_CUDA)
  int current = -1;  // most often it is the tensors' device already, and a guard costs time
  cudaGetDevice(&current);
  DeviceGuardHandle guard = nullptr;
  if (current != like.device_index) {
    RSK_TRY_TORCH(aoti_torch_create_device_guard(like.device_index, &guard));
  }
  const Refusal refusal = launch_on_device(kernel, batch, like);
  if (guard) aoti_torch_delete_device_guard(guard);
  return refusal;
#else
  // Waking a thread costs about as much as 32768 probabilities.
  const int64_t grain = batch.vocab_size < 1 << 15 ? (1 << 15) / batch.vocab_size : 1;
  const auto some = [](int64_t begin, int64_t end, void* all) {
    rsk::fused_cpu(*(const Batch*)all, (int32_t)begin, (int32_t)end);
  };
  RSK_TRY_TORCH(torch_parallel_for(0, batch.batch_size, grain, some, (void*)&batch));
  return nullptr;
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
  RSK_TRY(check_tensor(draft_tokens, "draft_tokens", 2, target_probs));
  RSK_TRY(check_tensor(target_probs, "target_probs", 3, target_probs));
  const int64_t batch_size = draft_tokens.sizes[0], spec_len = draft_tokens.sizes[1];
  RSK_EXPECT(spec_len <= 128, "expected K <= 128, got %lld", (long long)spec_len);
  RSK_EXPECT(target_probs.sizes[0] == batch_size && target_probs.sizes[1] == spec_len + 1,
             "target_probs: expected [B, K+1, V] for draft_tokens [B, K]");
  const bool wide_tokens = draft_tokens.dtype == aoti_torch_dtype_int64();
  RSK_EXPECT(wide_tokens || draft_tokens.dtype == aoti_torch_dtype_int32(),
             "draft_tokens: expected int64 or int32");

  Batch batch{};
  RSK_TRY(fill(batch, target_probs, seed, seed0, position, position0));
  batch.spec_len = (int32_t)spec_len;
  batch.sample_stream = rsk::SAMPLE;
  batch.draft_tokens = draft_tokens.data;
  batch.draft_tokens_stride = draft_tokens.strides[0];
  batch.wide_tokens = wide_tokens;
  batch.target_probs_stride[1] = target_probs.strides[1];
  if (draft_probs) {
    RSK_TRY(check_tensor(draft_probs, "draft_probs", 3, target_probs));
    RSK_EXPECT(draft_probs.sizes[0] == batch_size && draft_probs.sizes[1] == spec_len,
               "draft_probs: expected [B, K, V]");
    RSK_TRY(vocab_size_of(draft_probs, batch.draft_vocab_size));
    RSK_TRY(dtype_of(draft_probs, "draft_probs", batch.draft_dtype));
    batch.draft_probs = draft_probs.data;
    batch.draft_probs_stride[0] = draft_probs.strides[0];
    batch.draft_probs_stride[1] = draft_probs.strides[1];
  }
  Tensor tokens, num_accepted;
  RSK_TRY(tokens.become_int64({batch_size, spec_len + 1}, target_probs));
  RSK_TRY(num_accepted.become_int64({batch_size}, target_probs));
  batch.tokens = (int64_t*)tokens.data;
  batch.num_accepted = (int64_t*)num_accepted.data;
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

  RSK_TRY(check_tensor(probs, "probs", 2, probs));
  Batch batch{};
  RSK_TRY(fill(batch, probs, seed, seed0, position, position0));
  batch.sample_stream = rsk::DRAFT;
  Tensor tokens;
  RSK_TRY(tokens.become_int64({batch.batch_size}, probs));
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
