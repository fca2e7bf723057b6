// The arguments that the operators have in common: their checks, and what a kernel takes of them.
#pragma once

#include "binding.h"
#include "kernels.h"

namespace rsk {

// The public Python functions say what is wrong in full; these checks are the last line of defence,
// for whoever calls the operators directly.
inline Refusal check_tensor(const Tensor& tensor, const char* name, int64_t dims, const Tensor& like) {
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

inline Refusal per_request(const Tensor& tensor, const char* name, int64_t size, const Tensor& like,
                    const int64_t*& values) {
  if (!tensor) return nullptr;
  RSK_TRY(check_tensor(tensor, name, 1, like));
  RSK_EXPECT(tensor.dtype == aoti_torch_dtype_int64() && tensor.sizes[0] == size,
             "%s: expected int64 [%lld]", name, (long long)size);
  values = (const int64_t*)tensor.data;
  return nullptr;
}

inline Refusal dtype_of(const Tensor& probs, const char* name, Dtype& dtype) {
  if (probs.dtype == aoti_torch_dtype_float32()) dtype = Dtype::float32;
  else if (probs.dtype == aoti_torch_dtype_bfloat16()) dtype = Dtype::bfloat16;
  else if (probs.dtype == aoti_torch_dtype_float16()) dtype = Dtype::float16;
  else return refuse("%s: expected float32, bfloat16 or float16", name);
  return nullptr;
}

inline Refusal vocab_size_of(const Tensor& probs, int32_t& vocab_size) {
  const int64_t size = probs.sizes[probs.dims - 1];
  RSK_EXPECT(size >= 1 && size <= 1 << 20, "expected 1 <= V <= 2^20, got %lld", (long long)size);
  vocab_size = (int32_t)size;
  return nullptr;
}

// The rows that a token is sampled from, the random numbers and the sizes. Without drafts.
inline Refusal fill(Batch& batch, const Tensor& rows, const char* name, const Tensor& seed,
                    int64_t seed0, const Tensor& position, int64_t position0) {
  const int64_t batch_size = rows.sizes[0];
  RSK_EXPECT(batch_size <= INT32_MAX, "expected at most 2^31 - 1 requests, got %lld",
             (long long)batch_size);
  RSK_TRY(vocab_size_of(rows, batch.vocab_size));
  RSK_TRY(dtype_of(rows, name, batch.dtype));
  batch.draft_vocab_size = batch.vocab_size;
  batch.draft_dtype = batch.dtype;
  RSK_TRY(per_request(seed, "seed", batch_size, rows, batch.seeds));
  RSK_TRY(per_request(position, "position", batch_size, rows, batch.positions));
  batch.target_probs = rows.data;
  batch.target_probs_stride[0] = rows.strides[0];
  batch.target_probs_stride[1] = rows.dims == 3 ? rows.strides[1] : 0;
  batch.seed = seed0;
  batch.position = position0;
  batch.batch_size = (int32_t)batch_size;
  batch.sample_stream = DRAFT;
  return nullptr;
}

// The drafts, once fill() is done, and the tensors that the result is written to.
inline Refusal fill_drafts(Batch& batch, const Tensor& draft_tokens, const Tensor& draft_rows,
                           const char* draft_name, const Tensor& target_rows,
                           const char* target_name, Tensor& tokens, Tensor& num_accepted) {
  RSK_TRY(check_tensor(draft_tokens, "draft_tokens", 2, target_rows));
  const int64_t batch_size = draft_tokens.sizes[0], spec_len = draft_tokens.sizes[1];
  RSK_EXPECT(spec_len <= 128, "expected K <= 128, got %lld", (long long)spec_len);
  RSK_EXPECT(target_rows.sizes[0] == batch_size && target_rows.sizes[1] == spec_len + 1,
             "%s: expected [B, K+1, V] for draft_tokens [B, K]", target_name);
  batch.wide_tokens = draft_tokens.dtype == aoti_torch_dtype_int64();
  RSK_EXPECT(batch.wide_tokens || draft_tokens.dtype == aoti_torch_dtype_int32(),
             "draft_tokens: expected int64 or int32");
  batch.spec_len = (int32_t)spec_len;
  batch.sample_stream = SAMPLE;
  batch.draft_tokens = draft_tokens.data;
  batch.draft_tokens_stride = draft_tokens.strides[0];
  if (draft_rows) {
    RSK_TRY(check_tensor(draft_rows, draft_name, 3, target_rows));
    RSK_EXPECT(draft_rows.sizes[0] == batch_size && draft_rows.sizes[1] == spec_len,
               "%s: expected [B, K, V]", draft_name);
    RSK_TRY(vocab_size_of(draft_rows, batch.draft_vocab_size));
    RSK_TRY(dtype_of(draft_rows, draft_name, batch.draft_dtype));
    batch.draft_probs = draft_rows.data;
    batch.draft_probs_stride[0] = draft_rows.strides[0];
    batch.draft_probs_stride[1] = draft_rows.strides[1];
  }
  RSK_TRY(tokens.become({batch_size, spec_len + 1}, aoti_torch_dtype_int64(), target_rows));
  RSK_TRY(num_accepted.become({batch_size}, aoti_torch_dtype_int64(), target_rows));
  batch.tokens = (int64_t*)tokens.data;
  batch.num_accepted = (int64_t*)num_accepted.data;
  return nullptr;
}

#if defined(RSK_CUDA)

// Call launch(stream) with the device of the tensors current, on its current stream.
template <class Launch>
Refusal launch_on_device(const Tensor& like, Launch launch) {
#if defined(RSK_EMULATED)
  (void)like;
  return launch((cudaStream_t) nullptr);
#else
  int current = -1;  // most often it is the tensors' device already, and a guard costs time
  cudaGetDevice(&current);
  DeviceGuardHandle guard = nullptr;
  if (current != like.device_index)
    RSK_TRY_TORCH(aoti_torch_create_device_guard(like.device_index, &guard));
  void* stream = nullptr;
  const bool found = aoti_torch_get_current_cuda_stream(like.device_index, &stream) == 0;
  const Refusal refusal =
      found ? launch((cudaStream_t)stream) : refuse("rsk: PyTorch has no current stream");
  if (guard) aoti_torch_delete_device_guard(guard);
  return refusal;
#endif
}

// Memory for the time of a call: PyTorch frees it in the order of the stream.
inline Refusal reserve(Tensor& workspace, size_t bytes, const Tensor& like) {
  if (bytes == 0) return nullptr;
  return workspace.become({(int64_t)(bytes + 7) / 8}, aoti_torch_dtype_int64(), like);
}

inline Refusal check_launch(cudaError_t error) {
  // CUDA would keep it as the last error, and PyTorch's next kernel would raise it again.
  if (error != cudaSuccess) cudaGetLastError();
  RSK_EXPECT(error == cudaSuccess, "rsk: the launch failed: %s", cudaGetErrorString(error));
  return nullptr;
}

#else

// Numbers to read, in about 20 us, for which another thread is woken. On a busy machine, one that is
// woken for less may be waited for much longer.
constexpr int64_t WORTH_A_THREAD = 1 << 17;

// Call some(begin, end) on the parts of [0, count), on several threads if that is worth it: an item
// has `elements` numbers to read.
template <class Some>
Refusal on_threads(int64_t count, int64_t elements, Some some) {
  const int64_t grain = elements < WORTH_A_THREAD ? WORTH_A_THREAD / elements : 1;
  const auto call = [](int64_t begin, int64_t end, void* all) { (*(Some*)all)(begin, end); };
  RSK_TRY_TORCH(torch_parallel_for(0, count, grain, call, &some));
  return nullptr;
}

#endif

}  // namespace rsk
