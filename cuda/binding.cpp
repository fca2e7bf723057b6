// The binding: PyTorch operators on one side, plain pointers on the other. It owns the tensors, the
// checks that keep a kernel inside them, and the registration; it uses the stable ABI only, which
// compiles in seconds and runs on any later PyTorch.
//
// Compiled for the CPU as it is; with RSK_CUDA for the GPU; with RSK_CUDA and RSK_EMULATED for the
// CUDA kernels on the CPU. The first defines the operators' schemas, so it is loaded first.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using rsk::Batch;

// The public Python functions say what is wrong in full; these checks are the last line of defence
// for whoever calls the operators directly.
void check_tensor(const Tensor& tensor, const char* name, int64_t dims, const Tensor& like) {
  STD_TORCH_CHECK(tensor.dim() == dims, name, ": expected ", dims, " dimensions, got ",
                  tensor.dim());
  STD_TORCH_CHECK(tensor.stride(dims - 1) == 1 || tensor.size(dims - 1) <= 1, name,
                  ": expected the last dimension to be contiguous");
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() &&
                      tensor.get_device_index() == like.get_device_index(),
                  name, ": expected the device of the other tensors");
}

const int64_t* per_request(const std::optional<Tensor>& tensor, const char* name, int64_t size,
                           const Tensor& like) {
  if (!tensor) return nullptr;
  check_tensor(*tensor, name, 1, like);
  STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Long && tensor->size(0) == size, name,
                  ": expected int64 [", size, "]");
  return (const int64_t*)tensor->data_ptr();
}

rsk::Dtype dtype_of(const Tensor& probs, const char* name) {
  switch (probs.scalar_type()) {
    case ScalarType::Float: return rsk::Dtype::float32;
    case ScalarType::BFloat16: return rsk::Dtype::bfloat16;
    case ScalarType::Half: return rsk::Dtype::float16;
    default: STD_TORCH_CHECK(false, name, ": expected float32, bfloat16 or float16");
  }
}

int32_t vocab_size_of(const Tensor& probs) {
  const int64_t size = probs.size(probs.dim() - 1);
  STD_TORCH_CHECK(size >= 1 && size <= 1 << 20, "expected 1 <= V <= 2^20, got ", size);
  return (int32_t)size;
}

// A contiguous tensor. (torch::stable::new_empty goes through one more operator.)
Tensor new_int64(std::initializer_list<int64_t> shape, const Tensor& like) {
  std::array<int64_t, 2> strides{1, 1};
  if (shape.size() == 2) strides[0] = std::max<int64_t>(*(shape.begin() + 1), 1);
  AtenTensorHandle tensor = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      (int64_t)shape.size(), shape.begin(), strides.data(), aoti_torch_dtype_int64(),
      like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(),
      like.get_device_index(), &tensor));
  return Tensor(tensor);
}

// What the two operators have in common: p, the random numbers and the sizes.
Batch make_batch(const Tensor& probs, const std::optional<Tensor>& seed, int64_t seed0,
                 const std::optional<Tensor>& position, int64_t position0) {
  Batch batch{};
  const int64_t batch_size = probs.size(0);
  STD_TORCH_CHECK(batch_size <= INT32_MAX, "expected at most 2^31 - 1 requests, got ", batch_size);
  batch.dtype = batch.draft_dtype = dtype_of(probs, "probs");
  batch.target_probs = probs.data_ptr();
  batch.target_probs_stride[0] = probs.stride(0);
  batch.seeds = per_request(seed, "seed", batch_size, probs);
  batch.positions = per_request(position, "position", batch_size, probs);
  batch.seed = seed0;
  batch.position = position0;
  batch.batch_size = (int32_t)batch_size;
  batch.vocab_size = batch.draft_vocab_size = vocab_size_of(probs);
  return batch;
}

#if defined(RSK_CUDA)

// Launch a kernel on the current stream of the tensors' device.
void run_kernel(int64_t index, const Batch& batch, const Tensor& like) {
  STD_TORCH_CHECK(index >= 0 && index < rsk::NUM_KERNELS, "kernel: expected 0 to ",
                  rsk::NUM_KERNELS - 1, ", got ", index);
  STD_TORCH_CHECK(batch.draft_vocab_size == batch.vocab_size && batch.draft_dtype == batch.dtype,
                  "draft_probs: expected the vocabulary size and dtype of target_probs");
  const rsk::Kernel kernel = rsk::kernel_at((int32_t)index);
  std::optional<Tensor> workspace;  // PyTorch frees it in the order of the stream
  if (kernel.workspace_bytes) {
    const int64_t words = (int64_t)(kernel.workspace_bytes(batch) + 7) / 8;
    workspace = new_int64({words}, like);
  }
  void* stream = nullptr;
#if !defined(RSK_EMULATED)
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
#endif
  const cudaError_t error =
      kernel.launch(batch, workspace ? workspace->data_ptr() : nullptr, (cudaStream_t)stream);
  STD_TORCH_CHECK(error == cudaSuccess, "rsk: the launch failed: ", cudaGetErrorString(error));
}

#endif

// kernel: an index in rsk.KERNELS, or -1 for the fused sampler.
void run(int64_t kernel, const Batch& batch, const Tensor& like) {
  if (batch.batch_size == 0) return;
#if defined(RSK_EMULATED)
  run_kernel(kernel, batch, like);
#elif defined(RSK_CUDA)
  int current = -1;  // most often it is the tensors' device already, and a guard costs time
  cudaGetDevice(&current);
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (current != like.get_device_index()) guard.emplace(like.get_device_index());
  run_kernel(kernel < 0 ? rsk::best_kernel(batch) : kernel, batch, like);
#else
  // Waking a thread costs about as much as 32768 probabilities.
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / batch.vocab_size);
  torch::stable::parallel_for(0, batch.batch_size, grain, [&](int64_t begin, int64_t end) {
    rsk::fused_cpu(batch, (int32_t)begin, (int32_t)end);
  });
#endif
}

std::tuple<Tensor, Tensor> launch(
    int64_t kernel, const Tensor& draft_tokens, const std::optional<Tensor>& draft_probs,
    const Tensor& target_probs, const std::optional<Tensor>& seed, int64_t seed0,
    const std::optional<Tensor>& position, int64_t position0) {
  check_tensor(draft_tokens, "draft_tokens", 2, target_probs);
  check_tensor(target_probs, "target_probs", 3, target_probs);
  const int64_t batch_size = draft_tokens.size(0), spec_len = draft_tokens.size(1);
  STD_TORCH_CHECK(spec_len <= 128, "expected K <= 128, got ", spec_len);
  STD_TORCH_CHECK(target_probs.size(0) == batch_size && target_probs.size(1) == spec_len + 1,
                  "target_probs: expected [B, K+1, V] for draft_tokens [B, K]");
  const ScalarType tokens_dtype = draft_tokens.scalar_type();
  STD_TORCH_CHECK(tokens_dtype == ScalarType::Long || tokens_dtype == ScalarType::Int,
                  "draft_tokens: expected int64 or int32");

  Batch batch = make_batch(target_probs, seed, seed0, position, position0);
  batch.spec_len = (int32_t)spec_len;
  batch.sample_stream = rsk::SAMPLE;
  batch.draft_tokens = draft_tokens.data_ptr();
  batch.draft_tokens_stride = draft_tokens.stride(0);
  batch.wide_tokens = tokens_dtype == ScalarType::Long;
  batch.target_probs_stride[1] = target_probs.stride(1);
  if (draft_probs) {
    check_tensor(*draft_probs, "draft_probs", 3, target_probs);
    STD_TORCH_CHECK(draft_probs->size(0) == batch_size && draft_probs->size(1) == spec_len,
                    "draft_probs: expected [B, K, V]");
    batch.draft_vocab_size = vocab_size_of(*draft_probs);
    batch.draft_dtype = dtype_of(*draft_probs, "draft_probs");
    batch.draft_probs = draft_probs->data_ptr();
    batch.draft_probs_stride[0] = draft_probs->stride(0);
    batch.draft_probs_stride[1] = draft_probs->stride(1);
  }
  Tensor tokens = new_int64({batch_size, spec_len + 1}, target_probs);
  Tensor num_accepted = new_int64({batch_size}, target_probs);
  batch.tokens = (int64_t*)tokens.data_ptr();
  batch.num_accepted = (int64_t*)num_accepted.data_ptr();
  run(kernel, batch, target_probs);
  return {tokens, num_accepted};
}

std::tuple<Tensor, Tensor> rejection_sample(
    const Tensor& draft_tokens, const std::optional<Tensor>& draft_probs,
    const Tensor& target_probs, const std::optional<Tensor>& seed, int64_t seed0,
    const std::optional<Tensor>& position, int64_t position0) {
  return launch(-1, draft_tokens, draft_probs, target_probs, seed, seed0, position, position0);
}

// Drawing a token from a row is the same rule with no draft (K = 0) and a stream of its own.
Tensor sample(const Tensor& probs, const std::optional<Tensor>& seed, int64_t seed0,
              const std::optional<Tensor>& position, int64_t position0) {
  check_tensor(probs, "probs", 2, probs);
  Batch batch = make_batch(probs, seed, seed0, position, position0);
  batch.sample_stream = rsk::DRAFT;
  Tensor tokens = new_int64({batch.batch_size}, probs);
  batch.tokens = (int64_t*)tokens.data_ptr();
  run(-1, batch, probs);
  return tokens;
}

}  // namespace

#if defined(RSK_EMULATED)

STABLE_TORCH_LIBRARY_IMPL(rsk, CPU, m) { m.impl("launch", TORCH_BOX(&launch)); }

#elif defined(RSK_CUDA)

STABLE_TORCH_LIBRARY_IMPL(rsk, CUDA, m) {
  m.impl("rejection_sample", TORCH_BOX(&rejection_sample));
  m.impl("sample", TORCH_BOX(&sample));
  m.impl("launch", TORCH_BOX(&launch));
}

#else

STABLE_TORCH_LIBRARY(rsk, m) {
  m.def(
      "rejection_sample(Tensor draft_tokens, Tensor? draft_probs, Tensor target_probs, "
      "Tensor? seed, int seed0, Tensor? position, int position0) -> (Tensor, Tensor)");
  m.def("sample(Tensor probs, Tensor? seed, int seed0, Tensor? position, int position0) -> Tensor");
  m.def(
      "launch(int kernel, Tensor draft_tokens, Tensor? draft_probs, Tensor target_probs, "
      "Tensor? seed, int seed0, Tensor? position, int position0) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(rsk, CPU, m) {
  m.impl("rejection_sample", TORCH_BOX(&rejection_sample));
  m.impl("sample", TORCH_BOX(&sample));
}

#endif
