// The laws of rows of logits of which this rank has some columns: its part of the messages that find
// them, and the laws from the messages of all ranks. See rsk/sampler/slice_laws.py.
#include "block.h"
#include "launch.h"
#include "sliced_row.h"

namespace rsk::sharded {

// A row whose law is to be found, by its place in the messages.
struct Place {
  int32_t b, k;
  bool of_draft;
};

__device__ Place place_of(const Call& call, int32_t i) {
  const int32_t of_target = rows_of_target(call), rows = call.batch.spec_len + 1;
  if (i < of_target) return {i / rows, i % rows, false};
  i -= of_target;
  return {i / call.batch.spec_len, i % call.batch.spec_len, true};
}

template <class Logit>
__device__ SlicedRow<Logit> row_at(const Call& call, Place place) {
  return place.of_draft ? draft_slice<Logit>(call, place.b, place.k)
                        : target_slice<Logit>(call, place.b, place.k);
}

// --------------------------------------------------------------------------------------- opening

// Numbers of 32 bits in the order of the floats. NaN, of either sign, comes after infinity.
__device__ uint32_t ordered(float x) {
  const uint32_t bits = x == x ? bits_of(x) : 0x7FC00000u;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ float from_ordered(uint32_t key) {
  return float_of(key >> 31 ? key & 0x7FFFFFFFu : ~key);
}

// A logit and its token as one number, of which the largest of a row counts: the largest logit, and
// the first token that has it. 0 is less than all of them.
constexpr int32_t TOKEN_BITS = 20;
constexpr int64_t LAST_TOKEN = (1 << TOKEN_BITS) - 1;
__device__ int64_t key_of(float x, int32_t token) {
  return ((int64_t)ordered(x + 0.0f) << TOKEN_BITS) + (LAST_TOKEN - token);  // -0 becomes +0
}

// The largest logit that a lane has seen, and the first column that has it.
struct Largest {
  float x = float_of(0xFF800000u);
  int32_t column = 0;
  bool is_nan = false;

  __device__ void look_at(float y, int32_t at) {
    is_nan = is_nan | (y != y);
    if (y > x) {
      x = y;
      column = at;
    }
  }
  __device__ int64_t key(int32_t start) const {
    return key_of(is_nan ? float_of(0x7FC00000u) : x, start + column);
  }
};

__device__ int64_t largest_over_warp(int64_t x) {
  for (int32_t step = 16; step > 0; step /= 2) {
    const int64_t other = __shfl_xor_sync(ALL_LANES, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// Call f(x, column) for a lane's values of the tiles between begin and end: -infinity behind the
// row's end.
template <class Logit, class Function>
__device__ __forceinline__ void for_columns(const SlicedRow<Logit>& row, int32_t begin,
                                            int32_t end, int32_t lane, const Function& f) {
  for (int32_t start = begin; start < end; start += TILE) {
    Values<Logit> values;
    row.template load<true>(start, lane, values);
#pragma unroll
    for (int32_t i = 0; i < values.COUNT; ++i) f(values.at(i), values.column(start, i, lane));
  }
}

// The warp's row and the columns of its piece.
struct Share {
  int32_t row, begin, end;
};

__device__ Share share_of(const Call& call, int32_t warp) {
  const int32_t pieces = pieces_of(call), begin = warp % pieces * PIECE;
  return {warp / pieces, begin, begin + PIECE};
}

template <class Logit>
__global__ void __launch_bounds__(32 * WARPS) opening_kernel(Call call, int64_t* message) {
  const int32_t lane = (int32_t)threadIdx.x % 32;
  const int32_t warp = (int32_t)(blockIdx.x * WARPS + threadIdx.x / 32);
  const Share share = share_of(call, warp);
  const int32_t rows = rows_without_law(call);
  if (share.begin == 0) {
    // A row of the target for each request, and in any case the first warp.
    const int32_t b = share.row / (call.batch.spec_len + 1);
    const bool is_first = share.row % (call.batch.spec_len + 1) == 0;
    if (is_first && (b < call.batch.batch_size || share.row == 0)) {
      write_header(call, message, b, lane);
    }
  }
  if (share.row >= rows || call.listed) return;
  const auto row = row_at<Logit>(call, place_of(call, share.row));
  const int32_t end = share.end < row.size ? share.end : row.size;
  if (share.begin >= end) return;
  Largest own;
  for_columns(row, share.begin, end, lane,
              [&](float x, int32_t column) { own.look_at(x, column); });
  const int64_t largest = largest_over_warp(own.key(call.start));
  if (lane == 0) {
    atomicMax((unsigned long long*)message + call.offset + (int64_t)share.row * opening_words(call),
              (unsigned long long)largest);
  }
}

// ---------------------------------------------------------------------------------------- lists

constexpr int32_t THREADS = 256;     // of a block, which makes the list of one row
constexpr int32_t CANDIDATES = 1024;  // that it can sort
static_assert(LONGEST_LIST <= THREADS, "there are as many largest ones as threads");

struct ListMemory {
  uint32_t keys[CANDIDATES];
  uint32_t counts[256];  // by digit
  int64_t largest[THREADS / 32];
  uint32_t number, prefix, left;
};

// Sort `size` keys, a power of two, from the largest.
template <class Key>
__device__ void sort_in_block(Key* keys, int32_t size) {
  for (int32_t length = 2; length <= size; length *= 2) {
    for (int32_t step = length / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int32_t i = (int32_t)threadIdx.x; i < size; i += (int32_t)blockDim.x) {
        const int32_t other = i ^ step;
        if (other <= i) continue;
        const bool descends = (i & length) == 0;
        const Key a = keys[i], b = keys[other];
        if ((a < b) == descends) {
          keys[i] = b;
          keys[other] = a;
        }
      }
    }
  }
  __syncthreads();
}

// The key of the k-th largest value of a row, found as radix sort would: for rows with more ties
// than can be sorted. Returns how many of the list equal it.
template <class Logit>
__device__ uint32_t select_key(const SlicedRow<Logit>& row, int32_t k, ListMemory& memory,
                               uint32_t& equal) {
  const int32_t thread = (int32_t)threadIdx.x;
  if (thread == 0) {
    memory.prefix = 0;
    memory.left = (uint32_t)k;
  }
  for (int32_t shift = 24; shift >= 0; shift -= 8) {
    memory.counts[thread] = 0;
    __syncthreads();
    const uint64_t prefix = memory.prefix;
    for (int32_t i = thread; i < row.size; i += THREADS) {
      const uint32_t key = ordered(row[i]);
      if ((uint64_t)key >> (shift + 8) == prefix) {
        atomicAdd(&memory.counts[key >> shift & 255], 1u);
      }
    }
    __syncthreads();
    if (thread == 0) {
      int32_t digit = 255;
      while (memory.counts[digit] < memory.left) memory.left -= memory.counts[digit--];
      memory.prefix = memory.prefix << 8 | (uint32_t)digit;
    }
    __syncthreads();
  }
  equal = memory.left;
  const uint32_t key = memory.prefix;
  __syncthreads();  // all have read them
  return key;
}

template <class Logit>
__global__ void __launch_bounds__(THREADS) list_kernel(Call call, int64_t* message) {
  ListMemory& memory = shared_memory<ListMemory>();
  const int32_t thread = (int32_t)threadIdx.x, lane = thread % 32;
  const auto row = row_at<Logit>(call, place_of(call, (int32_t)blockIdx.x));
  int64_t* numbers = message + call.offset + (int64_t)blockIdx.x * opening_words(call);
  float* list = (float*)(numbers + 1);
  const int32_t listed = call.listed;

  // The largest one; and of each thread's, of which the k-th largest is a bound: there are k values
  // at or above it, and seldom many more.
  Largest own;
  const auto for_own = [&](const auto& f) {
#pragma unroll 1
    for (int32_t begin = thread / 32 * TILE; begin < row.size; begin += THREADS / 32 * TILE) {
      for_columns(row, begin, begin + TILE, lane, f);
    }
  };
  for_own([&](float x, int32_t column) { own.look_at(x, column); });
  const int64_t of_warp = largest_over_warp(own.key(call.start));
  if (lane == 0) memory.largest[thread / 32] = of_warp;
  memory.keys[thread] = ordered(own.x);
  if (thread == 0) memory.number = 0;
  sort_in_block(memory.keys, THREADS);
  if (thread == 0) {
    int64_t largest = 0;
    for (const int64_t x : memory.largest) largest = x > largest ? x : largest;
    numbers[0] = largest;
  }
  const uint32_t bound = memory.keys[listed - 1];
  __syncthreads();
  const float least = from_ordered(bound);

  for_own([&](float x, int32_t column) {
    if (!(x >= least) || column >= row.size) return;
    const uint32_t place = atomicAdd(&memory.number, 1u);
    if (place < CANDIDATES) memory.keys[place] = ordered(x);
  });
  __syncthreads();
  const uint32_t number = memory.number;
  if (number <= CANDIDATES) {
    int32_t size = 32;
    while (size < (int32_t)number || size < listed) size *= 2;
    for (int32_t i = (int32_t)number + thread; i < size; i += THREADS) {
      memory.keys[i] = ordered(-__builtin_huge_valf());
    }
    sort_in_block(memory.keys, size);
    for (int32_t i = thread; i < listed; i += THREADS) list[i] = from_ordered(memory.keys[i]);
    // What ties with the last one is at or above the bound, so all of it is here.
    const float last = from_ordered(memory.keys[listed - 1]);
    if (thread == 0) memory.left = 0;
    __syncthreads();
    for (int32_t i = listed + thread; i < (int32_t)number; i += THREADS) {
      if (from_ordered(memory.keys[i]) == last) atomicAdd(&memory.left, 1u);
    }
    __syncthreads();
    if (thread == 0) ((int32_t*)list)[listed] = (int32_t)memory.left;
    return;
  }
  // Too many ties. There are more values than the list is long.
  uint32_t equal = 0;
  const uint32_t key = select_key(row, listed, memory, equal);
  const float last = from_ordered(key);
  const int32_t above = listed - (int32_t)equal;
  if (thread == 0) memory.number = memory.left = 0;
  __syncthreads();
  for (int32_t i = thread; i < row.size; i += THREADS) {
    const float x = row[i];
    if (ordered(x) > key) list[atomicAdd(&memory.number, 1u)] = x;
    if (x == last) atomicAdd(&memory.left, 1u);
  }
  __syncthreads();
  for (int32_t i = above + thread; i < listed; i += THREADS) list[i] = last;
  if (thread == 0) {  // the zeros of the other sign are in the list, too
    int32_t in_list = (int32_t)equal;
    for (int32_t i = 0; i < above; ++i) in_list += list[i] == last;
    ((int32_t*)list)[listed] = (int32_t)memory.left - in_list;
  }
}

// ---------------------------------------------------------------------------------------- weights

// What all ranks have in one place of their messages, largest or together.
__device__ int64_t largest_of_ranks(const Call& call, const int64_t* place) {
  int64_t largest = 0;
  for (int32_t r = 0; r < call.ranks; ++r) {
    const int64_t x = place[(int64_t)r * call.words];
    largest = x > largest ? x : largest;
  }
  return largest;
}

__device__ const int64_t* opening_at(const Call& call, const int64_t* openings, int32_t row) {
  return openings + HEADER + (int64_t)row * opening_words(call);
}

template <class Logit>
__global__ void __launch_bounds__(32 * WARPS)
    weights_kernel(Call call, const int64_t* openings, int64_t* message) {
  const int32_t lane = (int32_t)threadIdx.x % 32;
  const Share share = share_of(call, (int32_t)(blockIdx.x * WARPS + threadIdx.x / 32));
  if (share.row >= rows_without_law(call)) return;
  const Place place = place_of(call, share.row);
  const auto row = row_at<Logit>(call, place);
  const Filter filter = filter_of(call.filters, place.b);
  const int64_t opening = largest_of_ranks(call, opening_at(call, openings, share.row));
  const float maximum = from_ordered((uint32_t)(opening >> TOKEN_BITS));
  const float scale = scale_of(filter.temperature);
  const int32_t end = share.end < row.size ? share.end : row.size;
  WeightSum sum;
  for_columns(row, share.begin, end, lane, [&](float x, int32_t) {
    const float e = relative_weight(x, maximum, scale);
    sum.add(e >= filter.min_p ? e : 0.0f);
  });
  const int64_t total = sum_over_warp(sum.total());
  if (lane == 0) add(message + share.row, total);
}

// ------------------------------------------------------------------------------------------- laws

__device__ RowLaw law_without_total(const Filter& filter, int64_t opening) {
  const float maximum = from_ordered((uint32_t)(opening >> TOKEN_BITS));
  if (!is_valid(filter) || !is_finite(maximum)) return invalid_law();
  if (filter.temperature == 0.0f) {
    return greedy_law(maximum, (int32_t)(LAST_TOKEN - (opening & LAST_TOKEN)));
  }
  return {maximum, scale_of(filter.temperature), -__builtin_huge_valf(), 1.0f};
}

__device__ RowLaw* place_of_law(const Call& call, Place place, RowLaw* laws, RowLaw* draft_laws) {
  return place.of_draft ? draft_laws + (int64_t)place.b * call.batch.spec_len + place.k
                        : laws + (int64_t)place.b * (call.batch.spec_len + 1) + place.k;
}

__global__ void __launch_bounds__(128)
    laws_kernel(Call call, const int64_t* openings, const int64_t* weights, RowLaw* laws,
                RowLaw* draft_laws) {
  const int32_t row = (int32_t)(blockIdx.x * 128 + threadIdx.x);
  if (row >= rows_without_law(call)) return;
  const Place place = place_of(call, row);
  const int64_t opening = largest_of_ranks(call, opening_at(call, openings, row));
  RowLaw law = law_without_total(filter_of(call.filters, place.b), opening);
  if (weights && !is_invalid(law) && !is_greedy(law)) {
    int64_t total = 0;
    for (int32_t r = 0; r < call.ranks; ++r) total += weights[(int64_t)r * call.words + row];
    law.normalizer = normalizer_of(total);
  }
  *place_of_law(call, place, laws, draft_laws) = law;
}

// Of all ranks together, with what further ties each of them has.
constexpr int32_t ENTRIES = 4096;
struct MergeMemory {
  uint64_t entries[ENTRIES];  // a value's key, and how often it stands for
};

// Walk over entries from the largest value, 32 at a time; f gets each lane's entry.
template <class Function>
__device__ void for_entries(const MergeMemory& memory, int32_t size, int32_t lane,
                            const Function& f) {
  for (int32_t begin = 0; begin < size; begin += 32) {
    const uint64_t entry = memory.entries[begin + lane];
    if (!f(from_ordered((uint32_t)(entry >> 32)), (int64_t)(uint32_t)entry)) return;
  }
}

// The value at which the running sum of f(value, times) reaches `wanted`.
template <class Function>
__device__ float value_at(const MergeMemory& memory, int32_t size, int64_t wanted, int32_t lane,
                          const Function& f) {
  float found = -__builtin_huge_valf();
  for_entries(memory, size, lane, [&](float x, int64_t times) {
    const int64_t running = running_sum(f(x, times), lane);
    const uint32_t reached = __ballot_sync(ALL_LANES, running >= wanted);
    if (reached) found = __shfl_sync(ALL_LANES, x, __ffs(reached) - 1);
    wanted -= __shfl_sync(ALL_LANES, running, 31);
    return reached == 0;
  });
  return found;
}

template <class Function>
__device__ int64_t sum_entries(const MergeMemory& memory, int32_t size, int32_t lane,
                               const Function& f) {
  int64_t sum = 0;
  for_entries(memory, size, lane, [&](float x, int64_t times) {
    sum += f(x, times);
    return true;
  });
  return sum_wide(sum);
}

__global__ void __launch_bounds__(128)
    merge_kernel(Call call, const int64_t* openings, RowLaw* laws, RowLaw* draft_laws,
                 int32_t size, int32_t vocab_size, int32_t draft_vocab_size) {
  MergeMemory& memory = shared_memory<MergeMemory>();
  const int32_t thread = (int32_t)threadIdx.x, lane = thread % 32, listed = call.listed;
  const Place place = place_of(call, (int32_t)blockIdx.x);
  const int64_t* own = opening_at(call, openings, (int32_t)blockIdx.x);
  for (int32_t i = thread; i < size; i += 128) {
    const int32_t r = i / (listed + 1), j = i % (listed + 1);
    uint64_t entry = 0;  // nothing
    if (r < call.ranks) {
      const float* list = (const float*)(own + (int64_t)r * call.words + 1);
      const uint32_t times = j < listed ? 1u : ((const uint32_t*)list)[listed];
      entry = (uint64_t)ordered(list[j < listed ? j : listed - 1]) << 32 | times;
    }
    memory.entries[i] = entry;
  }
  sort_in_block(memory.entries, size);
  if (thread >= 32) return;

  const Filter filter = filter_of(call.filters, place.b);
  RowLaw law = law_without_total(filter, largest_of_ranks(call, own));
  if (!is_invalid(law) && !is_greedy(law)) {
    const auto weight = [&](float x) { return weight_of(relative_weight(x, law.maximum, law.scale)); };
    if (listed < (place.of_draft ? draft_vocab_size : vocab_size)) {
      law.threshold =
          value_at(memory, size, listed, lane, [](float, int64_t times) { return times; });
    }
    const auto kept = [&](float x, int64_t times) {
      return times > 0 && x >= law.threshold ? weight(x) * times : 0;
    };
    if (filter.top_p < 1.0f) {
      const int64_t mass = mass_to_keep(filter.top_p, sum_entries(memory, size, lane, kept));
      law.threshold = value_at(memory, size, mass, lane, kept);
    }
    law.normalizer = normalizer_of(sum_entries(memory, size, lane, [&](float x, int64_t times) {
      return relative_weight(x, law.maximum, law.scale) >= filter.min_p ? kept(x, times) : 0;
    }));
  }
  if (lane == 0) *place_of_law(call, place, laws, draft_laws) = law;
}

// ---------------------------------------------------------------------------------- the launches

cudaError_t opening(const Call& call, int64_t* message, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(message, 0, (size_t)call.words * sizeof(int64_t), stream);
  if (error != cudaSuccess) return error;
  // With lists the warps of this kernel only write the header: one a row is enough.
  const int32_t rows = rows_without_law(call);
  const int64_t warps = rows > 0 ? (int64_t)rows * pieces_of(call) : 1;
  const auto config = launch_config((warps + WARPS - 1) / WARPS, 32 * WARPS, stream);
  const auto one_a_row = launch_config(rows, THREADS, stream);
  return with_type(call, [&](auto logit) {
    typedef decltype(logit) Logit;
    error = cudaLaunchKernelEx(&config, opening_kernel<Logit>, call, message);
    if (error != cudaSuccess || !call.listed || rows == 0) return error;
    return cudaLaunchKernelEx(&one_a_row, list_kernel<Logit>, call, message);
  });
}

cudaError_t weights(const Call& call, const int64_t* openings, int64_t* message,
                    cudaStream_t stream) {
  const cudaError_t error =
      cudaMemsetAsync(message, 0, (size_t)call.words * sizeof(int64_t), stream);
  const int64_t warps = (int64_t)rows_without_law(call) * pieces_of(call);
  if (error != cudaSuccess || warps == 0) return error;
  const auto config = launch_config((warps + WARPS - 1) / WARPS, 32 * WARPS, stream);
  return with_type(call, [&](auto logit) {
    return cudaLaunchKernelEx(&config, weights_kernel<decltype(logit)>, call, openings, message);
  });
}

cudaError_t laws(const Call& call, const int64_t* openings, const int64_t* weights, RowLaw* laws,
                 RowLaw* draft_laws, cudaStream_t stream) {
  const int32_t rows = rows_without_law(call);
  if (rows == 0) return cudaSuccess;
  if (!call.listed) {
    const auto config = launch_config((rows + 127) / 128, 128, stream);
    return cudaLaunchKernelEx(&config, laws_kernel, call, openings, weights, laws, draft_laws);
  }
  int32_t size = 32;
  while (size < call.ranks * (call.listed + 1)) size *= 2;
  if (size > ENTRIES) return cudaErrorInvalidValue;
  const auto config = launch_config(rows, 128, stream);
  return cudaLaunchKernelEx(&config, merge_kernel, call, openings, laws, draft_laws, size,
                            call.all_target, call.all_draft);
}

}  // namespace rsk::sharded
