// The operators that read, for rsk/measure/roof.py: a library of its own, which no sampler needs.
#include "arguments.h"
#include "roof.h"

namespace rsk::roof_operators {

// 32-bit words, one after the other.
Refusal check_words(const Tensor& words) {
  RSK_TRY(check_tensor(words, "words", 1, words));
  RSK_EXPECT(words.dtype == aoti_torch_dtype_int32(), "words: expected int32");
  return nullptr;
}

#if defined(RSK_CUDA)

RSK_OPERATOR Refusal read_in_blocks(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Tensor words = next.tensor();
  const int64_t blocks = next.integer(), threads = next.integer(), loads = next.integer();
  RSK_TRY(check_words(words));
  RSK_EXPECT(words.sizes[0] % 4 == 0 && (uintptr_t)words.data % 16 == 0,
             "words: expected packs of 16 bytes");
  RSK_EXPECT(blocks >= 1 && blocks <= 1 << 24, "blocks: expected 1 to 2^24, got %lld",
             (long long)blocks);
  RSK_EXPECT(threads >= 32 && threads <= 1024 && threads % 32 == 0,
             "threads: expected whole warps, at most 1024, got %lld", (long long)threads);
  Tensor sums;
  RSK_TRY(sums.become({blocks * threads / 32}, aoti_torch_dtype_int32(), words));
  RSK_TRY(launch_on_device(words, [&](cudaStream_t stream) {
    return check_launch(roof::launch(words.data, words.sizes[0] / 4, (int32_t)blocks,
                                     (int32_t)threads, (int32_t)loads, (int32_t*)sums.data,
                                     stream));
  }));
  stack[0] = sums.give_away();
  return nullptr;
}

#if defined(RSK_EMULATED)
const bool is_registered = implement("CPU", {{"read_in_blocks", boxed<read_in_blocks>}});
#else
const bool is_registered = implement("CUDA", {{"read_in_blocks", boxed<read_in_blocks>}});
#endif

#else

RSK_OPERATOR Refusal read_in_pieces(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Tensor words = next.tensor();
  const int64_t pieces = next.integer(), streams = next.integer(), ahead = next.integer();
  RSK_TRY(check_words(words));
  RSK_EXPECT(pieces >= 1 && pieces <= 1 << 16, "pieces: expected 1 to 2^16, got %lld",
             (long long)pieces);
  RSK_EXPECT(streams == 1 || streams == 2 || streams == 4, "streams: expected 1, 2 or 4, got %lld",
             (long long)streams);
  RSK_EXPECT(ahead >= 0 && ahead <= 1 << 16, "ahead: expected 0 to 2^16 bytes, got %lld",
             (long long)ahead);
  Tensor sums;
  RSK_TRY(sums.become({pieces}, aoti_torch_dtype_int32(), words));
  const auto read = [&](int64_t begin, int64_t end) {
    roof::read_pieces((const uint32_t*)words.data, words.sizes[0], (int32_t)pieces,
                      (int32_t)streams, (int32_t)ahead, (int32_t)begin, (int32_t)end,
                      (int32_t*)sums.data);
  };
  if (pieces == 1) {
    read(0, 1);
  } else {
    RSK_TRY(on_threads(pieces, WORTH_A_THREAD, read));
  }
  stack[0] = sums.give_away();
  return nullptr;
}

const bool is_registered =
    define({"read_in_pieces(Tensor words, int pieces, int streams, int ahead) -> Tensor",
            "read_in_blocks(Tensor words, int blocks, int threads, int loads) -> Tensor"}) &&
    implement("CPU", {{"read_in_pieces", boxed<read_in_pieces>}});

#endif

}  // namespace rsk::roof_operators
