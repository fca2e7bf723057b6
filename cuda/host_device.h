// What stands before a function that the CPU and the GPU both call.
#pragma once

#if defined(__CUDACC__)
#define RSK_METHOD __host__ __device__ __forceinline__
#else
#define RSK_METHOD inline
#endif
#define RSK_FUNCTION static RSK_METHOD
