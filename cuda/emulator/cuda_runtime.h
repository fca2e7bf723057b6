// CUDA without a GPU: enough of cuda_runtime.h to compile the unmodified kernels with a plain C++
// compiler and run them on the CPU. It serves tests and learners; it says nothing about speed.
//
// Each CUDA thread is a fiber, with a stack of its own (context.h). It runs until it must wait for others, at a
// barrier or a warp operation, and then hands over. The fibers take turns in an order shuffled by
// the seed in RSK_EMULATOR_SEED, so a result that depends on the order, because a barrier is
// missing, differs between seeds. If no fiber can go on, a barrier was not reached by all, and after
// a minute a loop does not end: both are errors.
//
// This folder is never on nvcc's include path: nvcc has the real header.
#pragma once

#if !defined(__unix__) && !defined(__APPLE__)
#error "the CUDA emulator needs Linux or macOS"
#endif

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "context.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the running fiber

namespace emulator {

// Where some threads meet: it opens when all that have not returned are there.
struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;

  uint64_t arrive() {
    const uint64_t ticket = generation;
    ++arrived;
    open_if_complete();
    return ticket;
  }
  void leave() {
    --expected;
    open_if_complete();
  }
  void open_if_complete() {
    if (arrived > 0 && arrived >= expected) {
      arrived = 0;
      ++generation;
    }
  }
};

struct Warp {
  Barrier barrier;
  uint64_t held_until = 0;  // round
  // What the lanes exchange, in two slots in turn, so that a fast lane cannot overwrite what a slow
  // one has still to read. The count of a lane's exchanges tells its value from an older one.
  uint64_t values[2][32];
  uint64_t count[2][32] = {};
};

struct Block {
  dim3 index;
  unsigned rank_in_cluster;
  Barrier barrier;
  std::vector<Warp> warps;
  std::map<const void*, std::vector<char>> shared;  // by the storage's type
  std::vector<char> dynamic_memory;                 // the dynamic part of the shared memory

  char* shared_memory(const void* type, size_t bytes) {
    std::vector<char>& memory = shared[type];
    if (memory.empty()) memory.assign(bytes, (char)0xA5);  // garbage, as on a GPU
    return memory.data();
  }
};

struct Cluster {
  std::vector<Block> blocks;
  Barrier barrier;
};

struct Copy {  // of 16 bytes, that a thread has begun
  void* to;
  const void* from;
};

struct Fiber {
  Context context;
  Cluster* cluster;
  Block* block;
  Warp* warp;
  dim3 index;
  int lane;
  uint64_t exchanges = 0;
  uint64_t announced = 0;  // its arrival at the cluster's barrier
  std::vector<std::vector<Copy>> copies;  // in groups, the oldest first
  const Barrier* waits_for = nullptr;
  uint64_t ticket = 0;
  bool returned = false;

  bool ready() const { return !returned && !(waits_for && waits_for->generation == ticket); }
};

struct Machine {
  Context scheduler;
  Fiber* fiber = nullptr;  // the running one
  bool failed = false;     // a thread did what is impossible on a GPU
  std::function<void()> body;
};

inline Machine& machine() {
  static thread_local Machine instance;
  return instance;
}
inline Fiber& current() { return *machine().fiber; }

inline void hand_over() { go_on(current().context, machine().scheduler); }
inline void resume(Fiber& fiber) { go_on(machine().scheduler, fiber.context); }

inline void wait(Barrier& barrier, uint64_t ticket) {
  Fiber& fiber = current();
  fiber.waits_for = &barrier;
  fiber.ticket = ticket;
  while (!fiber.ready()) hand_over();
  fiber.waits_for = nullptr;
}

inline void synchronize(Barrier& barrier) {
  const uint64_t ticket = barrier.arrive();
  hand_over();  // even the last to arrive: whoever goes on first is the seed's choice
  wait(barrier, ticket);
}

inline void run_fiber() {
  try {
    machine().body();
  } catch (...) {  // it cannot leave the fiber
    machine().failed = true;
  }
  Fiber& fiber = current();
  fiber.returned = true;
  fiber.warp->barrier.leave();
  fiber.block->barrier.leave();
  fiber.cluster->barrier.leave();
  hand_over();
}

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr std::chrono::seconds TIME_LIMIT{60};  // for a launch
constexpr size_t FIBERS_AT_ONCE = 2048;         // blocks run side by side up to this number

inline uint64_t seed() {
  const char* text = getenv("RSK_EMULATOR_SEED");
  return text ? strtoull(text, nullptr, 10) : 0;
}

// Prepare the fibers of one cluster.
inline void start(Cluster& cluster, std::vector<Fiber>& fibers, char* stacks) {
  const unsigned threads = blockDim.x;
  cluster.barrier.expected = (int)(cluster.blocks.size() * threads);
  for (Block& block : cluster.blocks) {
    block.barrier.expected = (int)threads;
    block.warps.resize((threads + 31) / 32);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = fibers.emplace_back();
      fiber.cluster = &cluster;
      fiber.block = &block;
      fiber.index = dim3(i, 0, 0);
      fiber.warp = &block.warps[i / 32];
      fiber.warp->barrier.expected += 1;
      fiber.lane = (int)(i % 32);
      prepare(fiber.context, stacks + (fibers.size() - 1) * STACK_BYTES, STACK_BYTES, run_fiber);
    }
  }
}

// Run the fibers to the end, warps at uneven speed: now and then one is held back for some rounds,
// as one that waits for memory is. Returns false if they do not come to an end.
inline bool run(std::vector<Fiber>& fibers, std::mt19937_64& order,
                std::chrono::steady_clock::time_point deadline) {
  std::vector<uint32_t> turns(fibers.size());
  for (size_t i = 0; i < turns.size(); ++i) turns[i] = (uint32_t)i;
  size_t remaining = fibers.size();
  for (uint64_t round = 0; remaining > 0; ++round) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    for (size_t i = turns.size(); i > 1; --i) std::swap(turns[i - 1], turns[order() % i]);
    bool progress = false;
    for (const uint32_t turn : turns) {
      Fiber& fiber = fibers[turn];
      if (!fiber.ready()) continue;
      progress = true;
      if (round < fiber.warp->held_until) continue;
      if (order() % 256 == 0) fiber.warp->held_until = round + order() % 16;
      machine().fiber = &fiber;
      threadIdx = fiber.index;
      blockIdx = fiber.block->index;
      resume(fiber);
      remaining -= fiber.returned;
    }
    if (!progress) return false;
  }
  return true;
}

}  // namespace emulator

// ---------------------------------------------------------------------- what a thread can call

inline void __syncthreads() { emulator::synchronize(emulator::current().block->barrier); }
inline void __syncwarp(unsigned = 0xFFFFFFFFu) {
  emulator::synchronize(emulator::current().warp->barrier);
}
inline void __threadfence() {}  // one fiber runs at a time

// One kernel runs at a time.
inline void cudaTriggerProgrammaticLaunchCompletion() {}
inline void cudaGridDependencySynchronize() {}

namespace emulator {

// Give a value; then see those of the other lanes.
struct Exchange {
  const Warp& warp;
  uint64_t count;

  explicit Exchange(uint64_t value) : warp(*current().warp), count(++current().exchanges) {
    current().warp->values[count % 2][current().lane] = value;
    current().warp->count[count % 2][current().lane] = count;
    synchronize(current().warp->barrier);
  }
  bool has(int lane) const { return warp.count[count % 2][lane] == count; }
  const uint64_t& of(int lane) const { return warp.values[count % 2][lane]; }
};

template <class T>
T from_lane(T value, int lane) {
  static_assert(sizeof(T) <= 8, "warp shuffles move at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  const Exchange all(bits);
  if (lane < 0 || lane > 31) return value;
  memcpy(&value, &all.of(lane), sizeof value);
  return value;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulator::from_lane(value, lane & 31);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned step) {
  return emulator::from_lane(value, emulator::current().lane - (int)step);
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned step) {
  return emulator::from_lane(value, emulator::current().lane + (int)step);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::from_lane(value, emulator::current().lane ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const emulator::Exchange all(predicate);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    ballot |= (unsigned)(all.has(lane) && all.of(lane)) << lane;
  }
  return ballot;
}
inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline bool __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline int __reduce_max_sync(unsigned, int value) {
  const emulator::Exchange all((unsigned)value);
  int largest = value;
  for (int lane = 0; lane < 32; ++lane) {
    if (all.has(lane)) largest = std::max(largest, (int)(unsigned)all.of(lane));
  }
  return largest;
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  const emulator::Exchange all(value);
  unsigned sum = 0;
  for (int lane = 0; lane < 32; ++lane) sum += all.has(lane) ? (unsigned)all.of(lane) : 0;
  return sum;
}
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rz(float x, float y) {  // for numbers whose sum a double holds well enough
  const double sum = (double)x + y;
  const float rounded = (float)sum;
  return fabs((double)rounded) > fabs(sum) ? nextafterf(rounded, 0.0f) : rounded;
}
using std::max;
using std::min;
inline int __ffs(unsigned x) { return __builtin_ffs((int)x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline void __nanosleep(unsigned) { emulator::hand_over(); }
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = std::max(before, value);
  return before;
}
template <class T>
T atomicOr(T* address, T value) {
  const T before = *address;
  *address |= value;
  return before;
}

namespace rsk {
// One struct of shared memory per block.
template <class Storage>
Storage& shared_memory() {
  static const char type = 0;
  return *(Storage*)emulator::current().block->shared_memory(&type, sizeof(Storage));
}
}  // namespace rsk

// ------------------------------------------------------------------------ what the host can call

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchTimeout = 702,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};
typedef void* cudaStream_t;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13
};
enum cudaClusterSchedulingPolicy { cudaClusterSchedulingPolicyLoadBalancing = 2 };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeClusterSchedulingPolicyPreference = 5,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
    cudaClusterSchedulingPolicy clusterSchedulingPolicyPreference;
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorMemoryAllocation: return "out of memory for the emulated threads";
    case cudaErrorLaunchTimeout:
      return "the kernel does not end: a barrier was not reached by all, or a loop goes on for ever";
    case cudaErrorLaunchFailure: return "a thread did what is not possible on a GPU";
    case cudaErrorNotSupported: return "not supported by this device";
  }
  return "unknown error";
}
// Of this thread: CUDA keeps it until someone asks, be it PyTorch after a launch of its own.
namespace emulator {
inline thread_local cudaError_t last_error = cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// A small GPU with clusters: few multiprocessors, so that emulated runs stay small.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 16; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 64 * 1024; break;
  }
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

namespace emulator {

// The stacks of the fibers that run at once. The system gives memory to those that are used.
struct Stacks {
  size_t bytes;
  void* memory;
  explicit Stacks(size_t bytes)
      : bytes(bytes),
        memory(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0)) {
    if (memory == MAP_FAILED) throw std::bad_alloc();
  }
  Stacks(const Stacks&) = delete;
  ~Stacks() { munmap(memory, bytes); }
};

inline cudaError_t launch(const cudaLaunchConfig_t* config, std::function<void()> body) {
  Machine& m = machine();
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  m.body = std::move(body);
  m.failed = false;
  unsigned per_cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
      per_cluster = config->attrs[i].val.clusterDim.x;
  }
  if (config->blockDim.x > 1024 || config->gridDim.x == 0) return cudaErrorInvalidConfiguration;
  if (config->gridDim.x % per_cluster) return cudaErrorInvalidValue;

  const size_t fibers_per_cluster = (size_t)per_cluster * config->blockDim.x;
  const size_t at_once = std::max<size_t>(1, FIBERS_AT_ONCE / fibers_per_cluster);
  const Stacks stacks(at_once * fibers_per_cluster * STACK_BYTES);
  std::mt19937_64 order(seed());
  const size_t num_clusters = config->gridDim.x / per_cluster;
  const auto deadline = std::chrono::steady_clock::now() + TIME_LIMIT;
  bool finished = true;
  // Clusters start in the order of their indices: a block may wait for one before it.
  for (size_t first = 0; first < num_clusters && finished; first += at_once) {
    std::vector<Cluster> clusters(std::min(at_once, num_clusters - first));
    std::vector<Fiber> fibers;
    fibers.reserve(clusters.size() * fibers_per_cluster);
    for (size_t i = 0; i < clusters.size(); ++i) {
      clusters[i].blocks.resize(per_cluster);
      for (unsigned rank = 0; rank < per_cluster; ++rank) {
        clusters[i].blocks[rank].index = dim3((unsigned)(first + i) * per_cluster + rank, 0, 0);
        clusters[i].blocks[rank].rank_in_cluster = rank;
        clusters[i].blocks[rank].dynamic_memory.assign(config->dynamicSmemBytes, (char)0xA5);
      }
      start(clusters[i], fibers, (char*)stacks.memory);
      for (Block& block : clusters[i].blocks) {  // some blocks begin late
        const uint64_t delay = order() % 2 * (order() % 128);
        for (Warp& warp : block.warps) warp.held_until = delay;
      }
    }
    finished = run(fibers, order, deadline);
  }
  if (m.failed) return cudaErrorLaunchFailure;
  return finished ? cudaSuccess : cudaErrorLaunchTimeout;
}

}  // namespace emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  cudaError_t error;
  try {
    error = emulator::launch(config, [&] { kernel(arguments...); });
  } catch (const std::bad_alloc&) {
    error = cudaErrorMemoryAllocation;
  }
  if (error != cudaSuccess) emulator::last_error = error;
  return error;
}
