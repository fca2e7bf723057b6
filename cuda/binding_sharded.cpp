// The binding of the sharded sampler's operators, which rsk/sampler/sharded_kernels.py calls: as
// binding.cpp is for the others. All numbers of a call come in one tensor on the host.
#include "arguments.h"
#include "binding.h"

#include "sharded.h"

namespace rsk::sharded_operators {

#if defined(RSK_CUDA)

using sharded::Call;

enum Number {  // the places in that tensor
  START, WIDTH, ALL_TOKENS, ALL_TARGET, ALL_DRAFT, RANK, RANKS, WORDS, OFFSET, STREAM, SEED,
  POSITION, IS_LOGITS, LISTED, TEMPERATURE, TOP_K, TOP_P, MIN_P, GIVEN_HEADER,
  NUMBERS = GIVEN_HEADER + rsk::sharded::GIVEN
};

// The arguments that all operators share, in the order of their schemas.
struct Shared {
  Tensor numbers, draft_tokens, draft, target, seed, position;
  Tensor temperature, top_k, top_p, min_p, laws, draft_laws;

  explicit Shared(Arguments& next)
      : numbers(next.tensor()), draft_tokens(next.tensor()), draft(next.optional_tensor()),
        target(next.tensor()), seed(next.optional_tensor()), position(next.optional_tensor()),
        temperature(next.optional_tensor()), top_k(next.optional_tensor()),
        top_p(next.optional_tensor()), min_p(next.optional_tensor()),
        laws(next.optional_tensor()), draft_laws(next.optional_tensor()) {}
};

Refusal expect_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape,
                     const Tensor& like) {
  RSK_EXPECT(tensor.is_readable && tensor.dims == (int64_t)shape.size(), "%s: wrong dimensions",
             name);
  int64_t i = 0;
  bool is_empty = false;
  for (const int64_t size : shape) {
    RSK_EXPECT(size < 0 || tensor.sizes[i] == size, "%s: expected %lld in dimension %d", name,
               (long long)size, (int)i);
    is_empty = is_empty || tensor.sizes[i] == 0;
    ++i;
  }
  RSK_EXPECT(is_empty || tensor.sizes[i - 1] <= 1 || tensor.strides[i - 1] == 1,
             "%s: expected the last dimension to be contiguous", name);
  RSK_EXPECT(
      tensor.device_type == like.device_type && tensor.device_index == like.device_index,
      "%s: expected the device of the other tensors", name);
  return nullptr;
}

// One that a kernel reads without its strides: of this type, each element behind the one before.
Refusal expect_dense(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape,
                     int32_t dtype, const Tensor& like) {
  RSK_TRY(expect_shape(tensor, name, shape, like));
  RSK_EXPECT(tensor.dtype == dtype, "%s: wrong dtype", name);
  int64_t elements = 1;
  bool is_dense = true;
  for (int64_t i = tensor.dims - 1; i >= 0; --i) {
    is_dense = is_dense && (tensor.sizes[i] <= 1 || tensor.strides[i] == elements);
    elements *= tensor.sizes[i];
  }
  RSK_EXPECT(is_dense || elements == 0, "%s: expected to be contiguous", name);
  return nullptr;
}

// An optional tensor [B] of one type.
Refusal each(const Tensor& tensor, const char* name, int64_t size, int32_t dtype,
             const Tensor& like, const void** data, int64_t* stride) {
  *data = nullptr;
  if (!tensor) return nullptr;
  RSK_EXPECT(tensor.is_readable && tensor.dims == 1 && tensor.sizes[0] == size &&
                 tensor.dtype == dtype && tensor.device_type == like.device_type &&
                 tensor.device_index == like.device_index,
             "%s: expected [%lld]", name, (long long)size);
  *data = tensor.data;
  *stride = tensor.strides[0];
  return nullptr;
}

float float_at(const int64_t* numbers, Number place) {
  return rsk::float_of((uint32_t)numbers[place]);
}

Refusal fill(const Shared& given, Call& call) {
  const Tensor& target = given.target;
  RSK_EXPECT(given.numbers.is_readable && given.numbers.dims == 1 &&
                 given.numbers.sizes[0] == NUMBERS && given.numbers.device_type == 0 &&
                 given.numbers.dtype == aoti_torch_dtype_int64(),
             "numbers: expected int64 [%d] on the host", (int)NUMBERS);
  const int64_t* numbers = (const int64_t*)given.numbers.data;
  RSK_EXPECT(given.numbers.strides[0] == 1, "numbers: expected to be contiguous");
  for (int i = START; i <= STREAM; ++i) {
    RSK_EXPECT(numbers[i] >= 0 && numbers[i] <= INT32_MAX / 2, "numbers: %lld in place %d",
               (long long)numbers[i], i);
  }
  RSK_EXPECT(numbers[RANK] < numbers[RANKS], "numbers: rank %d of %d", (int)numbers[RANK],
             (int)numbers[RANKS]);
  RSK_EXPECT(numbers[START] + numbers[WIDTH] <= numbers[ALL_TOKENS] &&
                 numbers[ALL_TARGET] <= numbers[ALL_TOKENS] &&
                 numbers[ALL_DRAFT] <= numbers[ALL_TOKENS] && numbers[ALL_TOKENS] <= 1 << 20,
             "numbers: a slice [%d, %d) of %d tokens", (int)numbers[START],
             (int)(numbers[START] + numbers[WIDTH]), (int)numbers[ALL_TOKENS]);
  RSK_EXPECT(numbers[OFFSET] == 0 || numbers[OFFSET] == rsk::sharded::HEADER,
             "numbers: an offset of %d", (int)numbers[OFFSET]);
  RSK_EXPECT(numbers[STREAM] <= DRAFT, "numbers: stream %d", (int)numbers[STREAM]);
  RSK_EXPECT(numbers[LISTED] >= 0 && numbers[LISTED] <= rsk::sharded::LONGEST_LIST,
             "numbers: lists of %lld", (long long)numbers[LISTED]);
  RSK_TRY(expect_shape(given.draft_tokens, "draft_tokens", {-1, -1}, target));
  const int64_t batch_size = given.draft_tokens.sizes[0], spec_len = given.draft_tokens.sizes[1];
  RSK_EXPECT(batch_size <= INT32_MAX / 1024 && spec_len <= 128, "draft_tokens: too many");
  RSK_TRY(expect_shape(target, "target", {batch_size, spec_len + 1, -1}, target));

  rsk::Batch& batch = call.batch;
  batch.batch_size = (int32_t)batch_size;
  batch.spec_len = (int32_t)spec_len;
  batch.draft_tokens = given.draft_tokens.data;
  batch.draft_tokens_stride = given.draft_tokens.strides[0];
  batch.wide_tokens = given.draft_tokens.dtype == aoti_torch_dtype_int64();
  RSK_EXPECT(batch.wide_tokens || given.draft_tokens.dtype == aoti_torch_dtype_int32(),
             "draft_tokens: expected int64 or int32");
  batch.target_probs = target.data;
  batch.target_probs_stride[0] = target.strides[0];
  batch.target_probs_stride[1] = target.strides[1];
  batch.vocab_size = (int32_t)target.sizes[2];
  RSK_TRY(dtype_of(target, "target", batch.dtype));
  if (given.draft) {
    RSK_TRY(expect_shape(given.draft, "draft", {batch_size, spec_len, -1}, target));
    batch.draft_probs = given.draft.data;
    batch.draft_probs_stride[0] = given.draft.strides[0];
    batch.draft_probs_stride[1] = given.draft.strides[1];
    batch.draft_vocab_size = (int32_t)given.draft.sizes[2];
    RSK_TRY(dtype_of(given.draft, "draft", batch.draft_dtype));
  }
  // A slice without columns has no memory, and that there is a draft is told by its pointer.
  static const float nothing[4] = {};
  if (given.draft && !batch.draft_probs) batch.draft_probs = nothing;

  const void* data = nullptr;
  int64_t stride = 0;
  const int32_t int64 = aoti_torch_dtype_int64(), float32 = aoti_torch_dtype_float32();
  RSK_TRY(each(given.seed, "seed", batch_size, int64, target, &data, &stride));
  RSK_EXPECT(!data || stride == 1 || batch_size <= 1, "seed: expected to be contiguous");
  batch.seeds = (const int64_t*)data;
  RSK_TRY(each(given.position, "position", batch_size, int64, target, &data, &stride));
  RSK_EXPECT(!data || stride == 1 || batch_size <= 1, "position: expected to be contiguous");
  batch.positions = (const int64_t*)data;
  batch.seed = numbers[SEED];
  batch.position = numbers[POSITION];
  batch.sample_stream = (int32_t)numbers[STREAM];

  call.start = (int32_t)numbers[START];
  call.width = (int32_t)numbers[WIDTH];
  call.all_tokens = (int32_t)numbers[ALL_TOKENS];
  call.all_target = (int32_t)numbers[ALL_TARGET];
  call.all_draft = (int32_t)numbers[ALL_DRAFT];
  call.rank = (int32_t)numbers[RANK];
  call.ranks = (int32_t)numbers[RANKS];
  call.words = (int32_t)numbers[WORDS];
  call.offset = (int32_t)numbers[OFFSET];
  call.is_logits = numbers[IS_LOGITS] != 0;
  call.listed = (int32_t)numbers[LISTED];
  for (int i = 0; i < rsk::sharded::GIVEN; ++i) call.header[i] = numbers[GIVEN_HEADER + i];
  const bool fits = batch.vocab_size <= call.width && batch.draft_vocab_size <= call.width;
  RSK_EXPECT(fits, "expected slices of at most %d columns", (int)call.width);
  const int64_t needed = call.offset + batch_size * (2 * spec_len + 2);
  RSK_EXPECT(call.offset >= 0 && needed <= call.words, "a message of %d words is too short",
             (int)call.words);
  if (!call.is_logits) return nullptr;

  rsk::Filters& filters = call.filters;
  filters.all_temperature = float_at(numbers, TEMPERATURE);
  filters.all_top_k = numbers[TOP_K];
  filters.all_top_p = float_at(numbers, TOP_P);
  filters.all_min_p = float_at(numbers, MIN_P);
  filters.wide_top_k = given.top_k.dtype == int64;
  const int32_t top_k_dtype = filters.wide_top_k ? int64 : aoti_torch_dtype_int32();
  int64_t* const strides = filters.strides;
  RSK_TRY(each(given.temperature, "temperature", batch_size, float32, target,
               (const void**)&filters.temperature, strides));
  RSK_TRY(each(given.top_k, "top_k", batch_size, top_k_dtype, target, &filters.top_k,
               strides + 1));
  RSK_TRY(each(given.top_p, "top_p", batch_size, float32, target, (const void**)&filters.top_p,
               strides + 2));
  RSK_TRY(each(given.min_p, "min_p", batch_size, float32, target, (const void**)&filters.min_p,
               strides + 3));
  if (given.laws) {
    RSK_TRY(expect_dense(given.laws, "laws", {batch_size, spec_len + 1, 4}, float32, target));
    call.laws = (const rsk::RowLaw*)given.laws.data;
  }
  if (given.draft_laws) {
    RSK_TRY(
        expect_dense(given.draft_laws, "draft_laws", {batch_size, spec_len, 4}, float32, target));
    call.draft_laws = (const rsk::RowLaw*)given.draft_laws.data;
  }
  const int64_t openings =
      (int64_t)rsk::sharded::rows_without_law(call) * rsk::sharded::opening_words(call);
  RSK_EXPECT(given.laws || call.offset + openings <= call.words,
             "a message of %d words is too short", (int)call.words);
  return nullptr;
}

// For what comes before the laws are known.
Refusal fill_without_laws(const Shared& given, Call& call) {
  RSK_TRY(fill(given, call));
  RSK_EXPECT(call.is_logits && !given.laws, "expected rows of logits, and no laws yet");
  return nullptr;
}

// What other ranks have sent: [R, words].
Refusal received(const Tensor& tensor, const char* name, const Call& call, const Tensor& like,
                 const int64_t** data) {
  RSK_TRY(expect_dense(tensor, name, {call.ranks, call.words}, aoti_torch_dtype_int64(), like));
  *data = (const int64_t*)tensor.data;
  return nullptr;
}

RSK_OPERATOR Refusal opening(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Shared given(next);
  Call call{};
  RSK_TRY(fill_without_laws(given, call));
  Tensor message;
  RSK_TRY(message.become({call.words}, aoti_torch_dtype_int64(), given.target));
  RSK_TRY(launch_on_device(given.target, [&](cudaStream_t stream) {
    return check_launch(rsk::sharded::opening(call, (int64_t*)message.data, stream));
  }));
  stack[0] = message.give_away();
  return nullptr;
}

RSK_OPERATOR Refusal weights(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Shared given(next);
  const Tensor openings = next.tensor();
  Call call{};
  const int64_t* from = nullptr;
  RSK_TRY(fill_without_laws(given, call));
  RSK_TRY(received(openings, "openings", call, given.target, &from));
  Tensor message;
  RSK_TRY(message.become({call.words}, aoti_torch_dtype_int64(), given.target));
  RSK_TRY(launch_on_device(given.target, [&](cudaStream_t stream) {
    return check_launch(rsk::sharded::weights(call, from, (int64_t*)message.data, stream));
  }));
  stack[0] = message.give_away();
  return nullptr;
}

// Laws are float32 [..., 4]; here int64 [..., 2], which the caller views so.
RSK_OPERATOR Refusal laws(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Shared given(next);
  const Tensor openings = next.tensor(), totals = next.optional_tensor();
  Call call{};
  const int64_t *first = nullptr, *second = nullptr;
  RSK_TRY(fill_without_laws(given, call));
  RSK_TRY(received(openings, "openings", call, given.target, &first));
  if (totals) RSK_TRY(received(totals, "weights", call, given.target, &second));
  const int64_t batch_size = call.batch.batch_size, spec_len = call.batch.spec_len;
  Tensor of_target, of_draft;
  RSK_TRY(of_target.become({batch_size, spec_len + 1, 2}, aoti_torch_dtype_int64(), given.target));
  RSK_TRY(of_draft.become({batch_size, spec_len, 2}, aoti_torch_dtype_int64(), given.target));
  RSK_TRY(launch_on_device(given.target, [&](cudaStream_t stream) {
    return check_launch(rsk::sharded::laws(call, first, second, (rsk::RowLaw*)of_target.data,
                                           (rsk::RowLaw*)of_draft.data, stream));
  }));
  stack[0] = of_target.give_away();
  stack[1] = of_draft.give_away();
  return nullptr;
}

RSK_OPERATOR Refusal totals(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Shared given(next);
  Call call{};
  RSK_TRY(fill(given, call));
  RSK_EXPECT(!call.is_logits || given.laws, "laws: expected, as the rows are logits");
  Tensor message, sums;
  RSK_TRY(message.become({call.words}, aoti_torch_dtype_int64(), given.target));
  const int64_t rows = (int64_t)call.batch.batch_size * (call.batch.spec_len + 1);
  RSK_TRY(sums.become({rows * rsk::sharded::pieces_of(call), 2}, aoti_torch_dtype_int64(), given.target));
  RSK_TRY(launch_on_device(given.target, [&](cudaStream_t stream) {
    return check_launch(
        rsk::sharded::totals(call, (int64_t*)message.data, (int64_t*)sums.data, stream));
  }));
  stack[0] = message.give_away();
  stack[1] = sums.give_away();
  return nullptr;
}

RSK_OPERATOR Refusal find(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Shared given(next);
  const Tensor first = next.tensor(), totals = next.tensor(), sums = next.tensor();
  const Tensor differing = next.optional_tensor();
  Call call{};
  const int64_t *headers = nullptr, *numbers = nullptr;
  RSK_TRY(fill(given, call));
  RSK_EXPECT(!call.is_logits || given.laws, "laws: expected, as the rows are logits");
  RSK_TRY(received(first, "first", call, given.target, &headers));
  RSK_TRY(received(totals, "totals", call, given.target, &numbers));
  const int64_t rows = (int64_t)call.batch.batch_size * (call.batch.spec_len + 1);
  const int64_t pieces = rsk::sharded::pieces_of(call);
  const int32_t int64 = aoti_torch_dtype_int64();
  RSK_TRY(expect_dense(sums, "sums", {rows * pieces, 2}, int64, given.target));
  if (differing) {  // on the host, where the kernel can write to it
    RSK_TRY(expect_dense(differing, "differing", {call.ranks, rsk::sharded::HEADER}, int64,
                         differing));
    RSK_EXPECT(differing.device_type == 0, "differing: expected to be on the host");
  }
  Tensor tokens, num_accepted;
  RSK_TRY(tokens.become({call.words / 2}, aoti_torch_dtype_int64(), given.target));
  RSK_TRY(num_accepted.become({call.batch.batch_size}, aoti_torch_dtype_int64(), given.target));
  RSK_TRY(launch_on_device(given.target, [&](cudaStream_t stream) {
    return check_launch(rsk::sharded::find(call, headers, numbers, (const int64_t*)sums.data,
                                           (int64_t*)tokens.data, (int64_t*)num_accepted.data,
                                           (int64_t*)differing.data, stream));
  }));
  stack[0] = tokens.give_away();
  stack[1] = num_accepted.give_away();
  return nullptr;
}

RSK_OPERATOR Refusal result(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Tensor draft_tokens = next.tensor(), num_accepted = next.tensor(), found = next.tensor();
  RSK_TRY(expect_shape(draft_tokens, "draft_tokens", {-1, -1}, found));
  const int64_t batch_size = draft_tokens.sizes[0], spec_len = draft_tokens.sizes[1];
  const int32_t int64 = aoti_torch_dtype_int64();
  RSK_TRY(expect_dense(num_accepted, "num_accepted", {batch_size}, int64, found));
  RSK_TRY(expect_dense(found, "found", {-1}, int64, found));
  RSK_EXPECT(found.sizes[0] >= batch_size, "found: expected a number for each request");
  RSK_EXPECT(batch_size <= INT32_MAX / 1024 && spec_len <= 128, "draft_tokens: too many");
  RSK_EXPECT(draft_tokens.dtype == int64 || draft_tokens.dtype == aoti_torch_dtype_int32(),
             "draft_tokens: expected int64 or int32");
  rsk::Batch batch{};
  batch.batch_size = (int32_t)batch_size;
  batch.spec_len = (int32_t)spec_len;
  batch.draft_tokens = draft_tokens.data;
  batch.draft_tokens_stride = draft_tokens.strides[0];
  batch.wide_tokens = draft_tokens.dtype == int64;
  batch.num_accepted = (int64_t*)num_accepted.data;
  Tensor tokens;
  RSK_TRY(tokens.become({batch_size, spec_len + 1}, aoti_torch_dtype_int64(), found));
  batch.tokens = (int64_t*)tokens.data;
  RSK_TRY(launch_on_device(found, [&](cudaStream_t stream) {
    return check_launch(rsk::sharded::result(batch, (const int64_t*)found.data, stream));
  }));
  stack[0] = tokens.give_away();
  return nullptr;
}

#if defined(RSK_EMULATED)
constexpr const char* KEY = "CPU";
#else
constexpr const char* KEY = "CUDA";
#endif

const bool is_registered = rsk::implement(KEY, {{"sharded_opening", rsk::boxed<opening>},
                                                {"sharded_weights", rsk::boxed<weights>},
                                                {"sharded_laws", rsk::boxed<laws>},
                                                {"sharded_totals", rsk::boxed<totals>},
                                                {"sharded_find", rsk::boxed<find>},
                                                {"sharded_result", rsk::boxed<result>}});

#else

#define RSK_SHARED                                                                          \
  "Tensor numbers, Tensor draft_tokens, Tensor? draft, Tensor target, Tensor? seed, "       \
  "Tensor? position, Tensor? temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "    \
  "Tensor? laws, Tensor? draft_laws"

const bool is_registered = rsk::define({
    "sharded_opening(" RSK_SHARED ") -> Tensor",
    "sharded_weights(" RSK_SHARED ", Tensor openings) -> Tensor",
    "sharded_laws(" RSK_SHARED ", Tensor openings, Tensor? weights) -> (Tensor, Tensor)",
    "sharded_totals(" RSK_SHARED ") -> (Tensor, Tensor)",
    "sharded_find(" RSK_SHARED
    ", Tensor first, Tensor totals, Tensor sums, Tensor? differing) -> (Tensor, Tensor)",
    "sharded_result(Tensor draft_tokens, Tensor num_accepted, Tensor found) -> Tensor",
});

#endif

}  // namespace rsk::sharded_operators
