// Host side of a launch: the configuration, and a kernel's template argument from the batch.
#pragma once

#include <cuda_runtime.h>

#include "specification.h"

namespace rsk {

// With more blocks than a launch may have, it is one without any, which CUDA refuses.
inline cudaLaunchConfig_t launch_config(int64_t blocks, int32_t threads, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks <= INT32_MAX ? (uint32_t)blocks : 0u);
  config.blockDim = dim3((uint32_t)threads);
  config.stream = stream;
  return config;
}

struct Device {
  int id = -1, capability = 0, multiprocessors = 0;  // the capability times ten
  int shared_memory = 0;  // bytes that a block may have

  // Blocks. All devices with clusters have room for 8; 16 are only known of the large ones.
  int32_t largest_cluster() const {
    const bool is_large = capability == 90 || capability == 100 || capability == 103;
    return capability < 90 ? 1 : is_large ? 16 : 8;
  }
};

// The current device; it is asked about itself once, since even that takes a microsecond.
inline cudaError_t current_device(Device& device) {
  static thread_local Device known;
  int id = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess && id != known.id) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id);
    }
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&known.multiprocessors, cudaDevAttrMultiProcessorCount, id);
    }
    if (error == cudaSuccess) {
      error = cudaDeviceGetAttribute(&known.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                     id);
    }
    if (error == cudaSuccess) {
      known.capability = 10 * major + minor;
      known.id = id;
    }
  }
  device = known;
  return error;
}

// Call f(Probability{}) with the type of the batch's probabilities.
template <class Function>
cudaError_t with_probability_type(const Batch& batch, const Function& f) {
  if (is_mixed(batch)) return f(Mixed{});
  switch (batch.dtype) {
    case Dtype::float32: return f(float{});
    case Dtype::bfloat16: return f(BFloat16{});
    case Dtype::float16: return f(Float16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace rsk
