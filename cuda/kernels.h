// The entry points that the binding calls: plain pointers in, nothing of PyTorch.
#pragma once

#include "logits_batch.h"
#include "specification.h"

#if defined(RSK_CUDA)
#include <cuda_runtime.h>
#endif

namespace rsk {

// The fused CPU kernel, on requests [begin, end).
void fused_cpu(const Batch& batch, int32_t begin, int32_t end);

// The same from logits.
void fused_cpu_logits(const LogitsBatch& call, int32_t begin, int32_t end);

// Calls task(i, argument) for all i in [0, count), on several threads. `elements`: that a task reads.
typedef void RunAll(int32_t count, int64_t elements, void (*task)(int32_t i, const void* argument),
                    const void* argument);

// All requests one after the other, for fewer requests than threads: the rows of `width` positions
// of a request are read side by side, as if each were reached.
void fused_cpu_logits_ahead(const LogitsBatch& call, int32_t width, RunAll* run_all);

// The probabilities of rows [begin, end) of the target's logits, counted over requests and
// positions: out is [B, K+1, V], contiguous.
void probabilities_cpu(const LogitsBatch& call, float* out, int64_t begin, int64_t end);

#if defined(RSK_CUDA)
// What a kernel's file defines, in a namespace of its name.
struct Kernel {
  // One kernel on the stream; the workspace belongs to the call.
  cudaError_t (*launch)(const Batch& batch, void* workspace, cudaStream_t stream);
  size_t (*workspace_bytes)(const Batch& batch);  // null: it needs none
};

#define RSK_KERNEL(name, ...) \
  namespace name {            \
  extern const Kernel entry;  \
  }
#include "kernel_list.h"
#undef RSK_KERNEL

enum class KernelName : int32_t {
#define RSK_KERNEL(name, ...) name,
#include "kernel_list.h"
#undef RSK_KERNEL
};

// The compute capability, times ten, that a kernel needs.
constexpr int32_t NEEDED_CAPABILITY[] = {
#define RSK_KERNEL(name, capability, ...) capability,
#include "kernel_list.h"
#undef RSK_KERNEL
};
constexpr int32_t NUM_KERNELS = sizeof NEEDED_CAPABILITY / sizeof NEEDED_CAPABILITY[0];

constexpr bool runs_on(KernelName name, int32_t capability) {
  return capability >= NEEDED_CAPABILITY[(int32_t)name];
}

const Kernel& kernel_of(KernelName name);
KernelName best_kernel(const Batch& batch);

// From logits: launch() answers all calls but probabilities, in one kernel; from compute capability
// 9.0 on, teams are clusters.
namespace from_logits {
constexpr int64_t MAX_ROWS = INT32_MAX / 16;  // of probabilities: each may take a team of 16 blocks

cudaError_t launch(const LogitsBatch& call, void* workspace, cudaStream_t stream);
size_t workspace_bytes(const LogitsBatch& call);
cudaError_t launch_probabilities(const LogitsBatch& call, float* out, cudaStream_t stream);
}  // namespace from_logits
#endif

}  // namespace rsk
