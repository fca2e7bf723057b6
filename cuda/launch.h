// Host side of a launch: the configuration, and a kernel's template argument from the dtype.
#pragma once

#include <cuda_runtime.h>

#include "specification.h"

namespace rsk {

inline cudaLaunchConfig_t launch_config(int64_t blocks, int32_t threads, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((uint32_t)blocks);
  config.blockDim = dim3((uint32_t)threads);
  config.stream = stream;
  return config;
}

struct Device {
  int id = -1, major = 0, multiprocessors = 0;
  int shared_memory = 0;  // bytes that a block may have
};

// The current device; it is asked about itself once, since even that takes a microsecond.
inline cudaError_t current_device(Device& device) {
  static thread_local Device known;
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess && id != known.id) {
    error = cudaDeviceGetAttribute(&known.major, cudaDevAttrComputeCapabilityMajor, id);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&known.multiprocessors, cudaDevAttrMultiProcessorCount, id);
    }
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&known.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                     id);
    }
    if (error == cudaSuccess) known.id = id;
  }
  device = known;
  return error;
}

// A batch that fills the GPU with one block per request.
inline bool is_large(const Batch& batch, const Device& device) {
  return batch.batch_size >= 2 * device.multiprocessors;
}

// Call f(Probability{}) with the type of the batch's probabilities.
template <class Function>
cudaError_t with_probability_type(const Batch& batch, const Function& f) {
  switch (batch.dtype) {
    case Dtype::float32: return f(float{});
    case Dtype::bfloat16: return f(BFloat16{});
    case Dtype::float16: return f(Float16{});
  }
  return cudaErrorInvalidValue;
}

// Launch kernel<Probability>(batch, arguments...).
#define RSK_LAUNCH(config, kernel, batch, ...)                                           \
  rsk::with_probability_type(batch, [&](auto probability) {                              \
    return cudaLaunchKernelEx(config, kernel<decltype(probability)>, batch, ##__VA_ARGS__); \
  })

}  // namespace rsk
