// What the binding needs of PyTorch, from its C interface alone: arguments, refusals, registration.
//
// PyTorch's C++ headers make the message of an error with a stream and throw it from here. Where the
// compiler links its C++ library statically (Conda's, HPC toolchains, manylinux), two C++ libraries
// meet in one process, and it crashes. So each function here returns what is wrong, and
// aoti_torch_check makes an exception of it inside PyTorch.
#pragma once

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <torch/headeronly/version.h>

#include <initializer_list>

// From torch/csrc/stable/c/shim.h of PyTorch 2.10 and later, which must keep them. That header itself
// includes <iostream>, which sets up streams when the library is loaded. A test compiles the two
// together, so that none of these can differ. A function returns 0 if all went well.
extern "C" {
struct AtenTensorOpaque;
struct DeviceGuardOpaque;
class TorchLibraryOpaque;
typedef AtenTensorOpaque* AtenTensorHandle;
typedef DeviceGuardOpaque* DeviceGuardHandle;
typedef TorchLibraryOpaque* TorchLibraryHandle;
typedef uint64_t StableIValue;  // an argument or a result: an integer, or a pointer

int32_t aoti_torch_get_dim(AtenTensorHandle, int64_t*);
int32_t aoti_torch_get_sizes(AtenTensorHandle, int64_t**);
int32_t aoti_torch_get_strides(AtenTensorHandle, int64_t**);
int32_t aoti_torch_get_dtype(AtenTensorHandle, int32_t*);
int32_t aoti_torch_get_device_type(AtenTensorHandle, int32_t*);
int32_t aoti_torch_get_device_index(AtenTensorHandle, int32_t*);
int32_t torch_get_const_data_ptr(AtenTensorHandle, const void**);
int32_t torch_get_mutable_data_ptr(AtenTensorHandle, void**);
int32_t aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides,
                                 int32_t dtype, int32_t device_type, int32_t device_index,
                                 AtenTensorHandle*);
int32_t aoti_torch_delete_tensor_object(AtenTensorHandle);
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_dtype_int32();
int32_t aoti_torch_create_device_guard(int32_t device_index, DeviceGuardHandle*);
int32_t aoti_torch_delete_device_guard(DeviceGuardHandle);
int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void**);
int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                           void (*)(int64_t begin, int64_t end, void*), void*);
int32_t torch_get_num_threads(uint32_t*);
int32_t aoti_torch_library_init_fragment(const char* space, const char* file, uint32_t line,
                                         TorchLibraryHandle*);
int32_t aoti_torch_library_init_impl(const char* space, const char* key, const char* file,
                                     uint32_t line, TorchLibraryHandle*);
int32_t aoti_torch_library_def(TorchLibraryHandle, const char* schema);
int32_t torch_library_impl(TorchLibraryHandle, const char* name,
                           void (*)(StableIValue*, uint64_t, uint64_t), uint64_t version);
void aoti_torch_check(bool, const char* function, const char* file, uint32_t line, const char*);
}

namespace rsk {

// What is wrong, or null. The text is the thread's own, good until its next refusal.
typedef const char* Refusal;

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
inline Refusal refuse(const char* format, ...) {
  static thread_local char text[256];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  return text;
}

// Return from this function: with a message, unless the condition holds; if a call refused.
#define RSK_EXPECT(condition, ...)                     \
  do {                                                 \
    if (!(condition)) return rsk::refuse(__VA_ARGS__); \
  } while (0)
#define RSK_TRY(call)                                        \
  do {                                                       \
    if (const rsk::Refusal refusal = (call)) return refusal; \
  } while (0)
#define RSK_TRY_TORCH(call) \
  RSK_EXPECT((call) == 0, "rsk: PyTorch failed in %s", #call)

// A tensor and the facts about it. It holds one reference; an optional one not given holds none.
struct Tensor {
  AtenTensorHandle handle = nullptr;
  bool is_readable = false;  // the facts are known
  int64_t dims = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  int32_t dtype = -1, device_type = -1, device_index = -1;
  void* data = nullptr;  // of an argument only to be read

  Tensor() = default;
  explicit Tensor(AtenTensorHandle owned) : handle(owned) {
    const void* bytes = nullptr;
    is_readable = aoti_torch_get_dim(handle, &dims) == 0 &&
                  aoti_torch_get_sizes(handle, &sizes) == 0 &&
                  aoti_torch_get_strides(handle, &strides) == 0 &&
                  aoti_torch_get_dtype(handle, &dtype) == 0 &&
                  aoti_torch_get_device_type(handle, &device_type) == 0 &&
                  aoti_torch_get_device_index(handle, &device_index) == 0 &&
                  torch_get_const_data_ptr(handle, &bytes) == 0;
    data = (void*)bytes;
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  explicit operator bool() const { return handle != nullptr; }

  // Make this a contiguous tensor, not initialised, of N dimensions on a device.
  template <int N>
  Refusal become(const int64_t (&shape)[N], int32_t type, const Tensor& like) {
    int64_t steps[N];
    int64_t step = 1;
    for (int i = N; i-- > 0; step *= shape[i] > 1 ? shape[i] : 1) steps[i] = step;
    RSK_EXPECT(aoti_torch_empty_strided(N, shape, steps, type, like.device_type,
                                        like.device_index, &handle) == 0,
               "rsk: PyTorch could not allocate %lld elements", (long long)step);
    RSK_TRY_TORCH(torch_get_mutable_data_ptr(handle, &data));
    return nullptr;
  }
  StableIValue give_away() {
    const StableIValue value = (StableIValue)handle;
    handle = nullptr;
    return value;
  }
};

// The arguments of an operator, in the order of its schema. Take all of them before anything can
// go wrong: what is left on the stack is lost.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : next_(stack) {}
  int64_t integer() { return (int64_t)*next_++; }
  double number() {
    double value;
    memcpy(&value, next_++, sizeof value);
    return value;
  }
  Tensor tensor() { return Tensor((AtenTensorHandle)*next_++); }
  Tensor optional_tensor() {
    StableIValue* const given = (StableIValue*)*next_++;
    if (!given) return Tensor();
    const AtenTensorHandle handle = (AtenTensorHandle)*given;
    delete given;
    return Tensor(handle);
  }

 private:
  StableIValue* next_;
};

// An operator takes its arguments from the stack and puts its results there, or refuses.
typedef Refusal Operator(StableIValue* stack) noexcept;

// What PyTorch calls. The exception passes through this function alone, in which nothing is left
// to be destroyed, so that no C++ library of ours has a part in it; hence RSK_OPERATOR.
template <Operator* call>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  if (const Refusal refusal = call(stack)) {
    aoti_torch_check(false, "rsk", "binding.h", __LINE__, refusal);
  }
}
#if defined(_MSC_VER)
#define RSK_OPERATOR __declspec(noinline)
#else
#define RSK_OPERATOR __attribute__((noinline))
#endif

// The schemas of operators; before any of them is implemented.
inline bool define(std::initializer_list<const char*> schemas) {
  TorchLibraryHandle library = nullptr;
  bool done = aoti_torch_library_init_fragment("rsk", "", 0, &library) == 0;
  for (const char* schema : schemas) done = done && aoti_torch_library_def(library, schema) == 0;
  return done;
}

struct Implementation {
  const char* name;
  void (*function)(StableIValue*, uint64_t, uint64_t);
};

// Implement operators for a dispatch key, such as "CPU". PyTorch keeps them until the process ends.
inline bool implement(const char* key, std::initializer_list<Implementation> implementations) {
  TorchLibraryHandle library = nullptr;
  bool done = aoti_torch_library_init_impl("rsk", key, "", 0, &library) == 0;
  for (const Implementation& x : implementations) {
    done = done && torch_library_impl(library, x.name, x.function, TORCH_ABI_VERSION) == 0;
  }
  return done;
}

}  // namespace rsk
