// The operators that begin with logits: binding.cpp says how a binding is made.
#include "arguments.h"
#include "binding.h"
#include "kernels.h"

namespace {
namespace from_logits {

using rsk::Arguments;
using rsk::LogitsBatch;
using rsk::Refusal;
using rsk::Tensor;

// Temperature, top_k, top_p and min_p: each a tensor of one value a request, or one number for all.
struct FilterArguments {
  Tensor temperature;
  double all_temperature;
  Tensor top_k;
  int64_t all_top_k;
  Tensor top_p;
  double all_top_p;
  Tensor min_p;
  double all_min_p;

  explicit FilterArguments(Arguments& next)  // members are initialised in their order
      : temperature(next.optional_tensor()),
        all_temperature(next.number()),
        top_k(next.optional_tensor()),
        all_top_k(next.integer()),
        top_p(next.optional_tensor()),
        all_top_p(next.number()),
        min_p(next.optional_tensor()),
        all_min_p(next.number()) {}
};

bool is_share(double x) { return x >= 0.0 && x <= 1.0; }

Refusal check_filter(const Tensor& filter, const char* name, bool is_expected_type,
                     const char* expected, const Tensor& logits) {
  RSK_EXPECT(filter.is_readable && filter.dims == 1 && filter.sizes[0] == logits.sizes[0] &&
                 is_expected_type,
             "%s: expected %s [%lld]", name, expected, (long long)logits.sizes[0]);
  RSK_EXPECT(
      filter.device_type == logits.device_type && filter.device_index == logits.device_index,
      "%s: expected the device of the other tensors", name);
  return nullptr;
}

Refusal fill(rsk::Filters& filters, const FilterArguments& from, const Tensor& logits) {
  const double heat = from.all_temperature;
  RSK_EXPECT(from.temperature || heat == 0.0 || (heat >= 0x1p-20 && heat <= 0x1p20),
             "temperature: expected 0, or a number in [2^-20, 2^20], got %g", heat);
  RSK_EXPECT(from.top_k || from.all_top_k >= 0, "top_k: expected at least 0, got %lld",
             (long long)from.all_top_k);
  RSK_EXPECT(from.top_p || is_share(from.all_top_p), "top_p: expected a number in [0, 1], got %g",
             from.all_top_p);
  RSK_EXPECT(from.min_p || is_share(from.all_min_p), "min_p: expected a number in [0, 1], got %g",
             from.all_min_p);
  filters.all_temperature = (float)from.all_temperature;  // the nearest
  filters.all_top_k = from.all_top_k;
  filters.all_top_p = (float)from.all_top_p;
  filters.all_min_p = (float)from.all_min_p;
  const struct {
    const Tensor& tensor;
    const char* name;
    const float** values;
    int64_t& stride;
  } floats[] = {
      {from.temperature, "temperature", &filters.temperature, filters.strides[0]},
      {from.top_p, "top_p", &filters.top_p, filters.strides[2]},
      {from.min_p, "min_p", &filters.min_p, filters.strides[3]},
  };
  for (const auto& [tensor, name, values, stride] : floats) {
    if (!tensor) continue;
    const bool is_float = tensor.dtype == aoti_torch_dtype_float32();
    RSK_TRY(check_filter(tensor, name, is_float, "float32", logits));
    *values = (const float*)tensor.data;
    stride = tensor.strides[0];
  }
  if (from.top_k) {
    filters.wide_top_k = from.top_k.dtype == aoti_torch_dtype_int64();
    const bool is_integer = filters.wide_top_k || from.top_k.dtype == aoti_torch_dtype_int32();
    RSK_TRY(check_filter(from.top_k, "top_k", is_integer, "int64 or int32", logits));
    filters.top_k = from.top_k.data;
    filters.strides[1] = from.top_k.strides[0];
  }
  return nullptr;
}

#if !defined(RSK_CUDA)
void run_all(int32_t count, int64_t elements, void (*task)(int32_t, const void*),
             const void* argument) {
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task((int32_t)i, argument);
  };
  if (rsk::on_threads(count, 2 * elements, some)) some(0, count);
}
#endif

Refusal run(const LogitsBatch& call, const Tensor& like) {
  if (call.batch.batch_size == 0) return nullptr;
#if defined(RSK_CUDA)
  return rsk::launch_on_device(like, [&](cudaStream_t stream) -> Refusal {
    Tensor workspace;
    RSK_TRY(rsk::reserve(workspace, rsk::from_logits::workspace_bytes(call), like));
    return rsk::check_launch(rsk::from_logits::launch(call, workspace.data, stream));
  });
#else
  (void)like;
  const rsk::Batch& batch = call.batch;
  uint32_t num_threads = 1;
  RSK_TRY_TORCH(torch_get_num_threads(&num_threads));
  const int64_t width = (num_threads + 1) / 2;  // two rows a position
  if (batch.batch_size < num_threads && 2 * width * batch.vocab_size >= rsk::WORTH_A_THREAD) {
    rsk::fused_cpu_logits_ahead(call, (int32_t)width, run_all);
    return nullptr;
  }
  const int64_t elements = 4 * (int64_t)batch.vocab_size;  // some rows, and some work on each
  return rsk::on_threads(batch.batch_size, elements, [&](int64_t begin, int64_t end) {
    rsk::fused_cpu_logits(call, (int32_t)begin, (int32_t)end);
  });
#endif
}

RSK_OPERATOR Refusal probabilities(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Tensor logits = next.tensor();
  const FilterArguments filters(next);

  RSK_EXPECT(logits.is_readable && (logits.dims == 2 || logits.dims == 3),
             "logits: expected [B, V] or [B, K, V]");
  RSK_TRY(rsk::check_tensor(logits, "logits", logits.dims, logits));
  LogitsBatch call{};
  RSK_TRY(rsk::fill(call.batch, logits, "logits", Tensor(), 0, Tensor(), 0));
  RSK_TRY(fill(call.filters, filters, logits));
  const int64_t batch_size = logits.sizes[0], vocab_size = logits.sizes[logits.dims - 1];
  const int64_t rows = logits.dims == 3 ? logits.sizes[1] : 1;
  RSK_EXPECT(rows <= INT32_MAX, "logits: expected at most 2^31 - 1 rows a request");
#if defined(RSK_CUDA)
  RSK_EXPECT(batch_size * rows <= rsk::from_logits::MAX_ROWS,
             "logits: expected at most %lld rows, got %lld",
             (long long)rsk::from_logits::MAX_ROWS, (long long)(batch_size * rows));
#endif
  call.batch.spec_len = (int32_t)rows - 1;
  Tensor out;
  if (logits.dims == 3) {
    RSK_TRY(out.become({batch_size, rows, vocab_size}, aoti_torch_dtype_float32(), logits));
  } else {
    RSK_TRY(out.become({batch_size, vocab_size}, aoti_torch_dtype_float32(), logits));
  }
  if (batch_size * rows > 0) {
#if defined(RSK_CUDA)
    RSK_TRY(rsk::launch_on_device(logits, [&](cudaStream_t stream) {
      return rsk::check_launch(
          rsk::from_logits::launch_probabilities(call, (float*)out.data, stream));
    }));
#else
    RSK_TRY(rsk::on_threads(batch_size * rows, 2 * vocab_size, [&](int64_t begin, int64_t end) {
      rsk::probabilities_cpu(call, (float*)out.data, begin, end);
    }));
#endif
  }
  stack[0] = out.give_away();
  return nullptr;
}

RSK_OPERATOR Refusal sample_from_logits(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Tensor logits = next.tensor();
  const FilterArguments filters(next);
  const Tensor seed = next.optional_tensor();
  const int64_t seed0 = next.integer();
  const Tensor position = next.optional_tensor();
  const int64_t position0 = next.integer();

  RSK_TRY(rsk::check_tensor(logits, "logits", 2, logits));
  LogitsBatch call{};
  RSK_TRY(rsk::fill(call.batch, logits, "logits", seed, seed0, position, position0));
  RSK_TRY(fill(call.filters, filters, logits));
  Tensor tokens, laws;
  RSK_TRY(tokens.become({logits.sizes[0]}, aoti_torch_dtype_int64(), logits));
  RSK_TRY(laws.become({logits.sizes[0], 4}, aoti_torch_dtype_float32(), logits));
  call.batch.tokens = (int64_t*)tokens.data;
  call.laws = (rsk::RowLaw*)laws.data;
  RSK_TRY(run(call, logits));
  stack[0] = tokens.give_away();
  stack[1] = laws.give_away();
  return nullptr;
}

RSK_OPERATOR Refusal rejection_sample_from_logits(StableIValue* stack) noexcept {
  Arguments next(stack);
  const Tensor draft_tokens = next.tensor(), draft_logits = next.optional_tensor();
  const Tensor draft_laws = next.optional_tensor(), target_logits = next.tensor();
  const FilterArguments filters(next);
  const Tensor seed = next.optional_tensor();
  const int64_t seed0 = next.integer();
  const Tensor position = next.optional_tensor();
  const int64_t position0 = next.integer();

  RSK_TRY(rsk::check_tensor(target_logits, "target_logits", 3, target_logits));
  LogitsBatch call{};
  RSK_TRY(rsk::fill(call.batch, target_logits, "target_logits", seed, seed0, position, position0));
  Tensor tokens, num_accepted;
  RSK_TRY(rsk::fill_drafts(call.batch, draft_tokens, draft_logits, "draft_logits", target_logits,
                           "target_logits", tokens, num_accepted));
  RSK_TRY(fill(call.filters, filters, target_logits));
  if (draft_laws) {
    RSK_EXPECT(draft_logits, "draft_laws: expected draft_logits beside them");
    RSK_TRY(rsk::check_tensor(draft_laws, "draft_laws", 3, target_logits));
    const int64_t* const size = draft_laws.sizes;
    const int64_t batch_size = call.batch.batch_size, spec_len = call.batch.spec_len;
    RSK_EXPECT(size[0] == batch_size && size[1] == spec_len && size[2] == 4 &&
                   draft_laws.dtype == aoti_torch_dtype_float32(),
               "draft_laws: expected float32 [B, K, 4]");
    RSK_EXPECT(batch_size * spec_len == 0 ||
                   ((draft_laws.strides[1] == 4 || spec_len == 1) &&
                    (draft_laws.strides[0] == 4 * spec_len || batch_size == 1)),
               "draft_laws: expected a contiguous tensor");
    call.draft_laws = (const rsk::RowLaw*)draft_laws.data;
  }
  RSK_TRY(run(call, target_logits));
  stack[0] = tokens.give_away();
  stack[1] = num_accepted.give_away();
  return nullptr;
}

#if defined(RSK_EMULATED)

const bool is_registered = rsk::implement(
    "CPU", {{"emulated_probabilities", rsk::boxed<probabilities>},
            {"emulated_sample_from_logits", rsk::boxed<sample_from_logits>},
            {"emulated_rejection_sample_from_logits", rsk::boxed<rejection_sample_from_logits>}});

#else

#if defined(RSK_CUDA)
constexpr const char* KEY = "CUDA";
constexpr bool is_defined = true;
#else
constexpr const char* KEY = "CPU";

#define RSK_FILTERS                                                      \
  "Tensor? temperature, float temperature0, Tensor? top_k, int top_k0, " \
  "Tensor? top_p, float top_p0, Tensor? min_p, float min_p0"
#define RSK_RANDOM "Tensor? seed, int seed0, Tensor? position, int position0"
#define RSK_PROBABILITIES "probabilities(Tensor logits, " RSK_FILTERS ") -> Tensor"
#define RSK_SAMPLE \
  "sample_from_logits(Tensor logits, " RSK_FILTERS ", " RSK_RANDOM ") -> (Tensor, Tensor)"
#define RSK_REJECTION_SAMPLE                                                               \
  "rejection_sample_from_logits(Tensor draft_tokens, Tensor? draft_logits, "               \
  "Tensor? draft_laws, Tensor target_logits, " RSK_FILTERS ", " RSK_RANDOM ") -> (Tensor, " \
  "Tensor)"

const bool is_defined =
    rsk::define({RSK_PROBABILITIES, RSK_SAMPLE, RSK_REJECTION_SAMPLE,
                 "emulated_" RSK_PROBABILITIES, "emulated_" RSK_SAMPLE,
                 "emulated_" RSK_REJECTION_SAMPLE});
#endif

const bool is_registered =
    is_defined &&
    rsk::implement(KEY, {{"probabilities", rsk::boxed<probabilities>},
                         {"sample_from_logits", rsk::boxed<sample_from_logits>},
                         {"rejection_sample_from_logits", rsk::boxed<rejection_sample_from_logits>}});

#endif

}  // namespace from_logits
}  // namespace
