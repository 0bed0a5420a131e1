// The few things every binding needs from stable-ABI tensors: types, layouts, allocation and threads.
#pragma once
#include <sys/mman.h>
#ifdef USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <unistd.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>
#ifdef SEGOPS_OWN_THREADS
#include <thread>
#endif

#include "parallel.h"
#include "segops/types.h"
#ifdef SEGOPS_DEVICE_KERNELS
#include "launch.h"
#endif

// One binding file serves every backend library: the namespace and key come from the build.
#define SEGOPS_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

namespace segops::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

inline void check(Status status, const char* op) {
  check(status != Status::out_of_memory, "segops.", op, ": out of memory for scratch");
  check(status == Status::ok, "segops.", op, ": not supported for these arguments");
}

// Of the argument `name` of `op`.
inline Dtype dtype_of(const Tensor& t, const char* op, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::Byte: return Dtype::uint8;
    case ScalarType::Short: return Dtype::int16;
    case ScalarType::Int: return Dtype::int32;
    case ScalarType::Long: return Dtype::int64;
    case ScalarType::Char: return Dtype::int8;
    default: fail("segops.", op, ": ", name, ": dtype not supported");
  }
}

inline Dtype floating_dtype(const Tensor& t, const char* op, const char* name) {
  const Dtype dtype = dtype_of(t, op, name);
  check(dtype <= Dtype::float16, "segops.", op, ": ", name, " must be floating point");
  return dtype;
}

// What numbers of t's floating-point type are accumulated in.
inline ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(static_cast<size_t>(t.dim()));
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = t.size(static_cast<int64_t>(i));
  return sizes;
}

// A kernel must not be given a pointer of another device.
inline void check_device(const Tensor& t, const Tensor& like, const char* op, const char* name) {
  check(t.is_cpu() == like.is_cpu() && t.get_device_index() == like.get_device_index(), "segops.", op, ": ", name,
        " must be on the device of the other tensors");
}

// The library of a device is called with a tensor of the CPU where only another argument is on the device.
inline void check_on_device([[maybe_unused]] const Tensor& t, [[maybe_unused]] const char* op,
                            [[maybe_unused]] const char* name) {
#ifdef USE_CUDA
  check(!t.is_cpu(), "segops.", op, ": ", name, " must be on the device of the other tensors, got a CPU tensor");
#endif
}

// Sizes as a message tells them: written where a check fails, which costs a call that passes it nothing.
struct SizesText {
  const Tensor* tensor;
  const int64_t* sizes;
  size_t count;
};
inline SizesText to_text(const Tensor& t) { return {&t, nullptr, static_cast<size_t>(t.dim())}; }
inline SizesText to_text(const std::vector<int64_t>& sizes) { return {nullptr, sizes.data(), sizes.size()}; }
inline SizesText to_text(const std::initializer_list<int64_t>& sizes) { return {nullptr, sizes.begin(), sizes.size()}; }

inline std::ostream& operator<<(std::ostream& text, const SizesText& s) {
  text << "[";
  for (size_t i = 0; i < s.count; ++i)
    text << (i ? ", " : "") << (s.tensor ? s.tensor->size(static_cast<int64_t>(i)) : s.sizes[i]);
  return text << "]";
}

// A large output that is fresh from the system is faulted in page by page on its first write; huge pages make that several
// times cheaper. Advice only: it changes no result and may be refused.
inline void advise_huge_pages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  if (bytes >= 2 * kHugePage && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Whether a tensor of the CPU has memory that has been touched before. Stores past the caches are good there; on a fresh
// page, which the system clears through the caches at the first store, they cost the more. Nobody asks for less than a cache
// holds: that is called cold.
inline bool is_warm(const Tensor& t) {
  const size_t bytes = static_cast<size_t>(t.numel()) * t.element_size();
  if (!t.is_cpu() || bytes < size_t{1} << 20) return false;
#ifdef __linux__
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  for (size_t at : {bytes / 4, bytes / 2, bytes - bytes / 4}) {
    unsigned char resident = 0;
    if (mincore(reinterpret_cast<void*>((begin + at) & ~(page - 1)), 1, &resident) != 0 || !(resident & 1)) return false;
  }
  return true;
#else
  return false;
#endif
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                    const Tensor& like) {
  int32_t dtype = 0, device_type = 0;
  switch (type) {
    case ScalarType::Float: dtype = aoti_torch_dtype_float32(); break;
    case ScalarType::Double: dtype = aoti_torch_dtype_float64(); break;
    case ScalarType::BFloat16: dtype = aoti_torch_dtype_bfloat16(); break;
    case ScalarType::Half: dtype = aoti_torch_dtype_float16(); break;
    case ScalarType::Byte: dtype = aoti_torch_dtype_uint8(); break;
    case ScalarType::Short: dtype = aoti_torch_dtype_int16(); break;
    case ScalarType::Int: dtype = aoti_torch_dtype_int32(); break;
    case ScalarType::Long: dtype = aoti_torch_dtype_int64(); break;
    case ScalarType::Char: dtype = aoti_torch_dtype_int8(); break;
    default: fail("segops: no allocation of this dtype");
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  // torch's own message, which names the bytes, does not come through the stable ABI.
  const bool made = aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                             device_type, like.get_device(), &handle) == AOTI_TORCH_SUCCESS;
  check(made, "segops: out of memory for a tensor ", to_text(sizes), " of ", like.is_cpu() ? "the CPU" : "the device");
  Tensor result(handle);
  if (like.is_cpu() && result.numel() > 0)
    advise_huge_pages(result.mutable_data_ptr(), static_cast<size_t>(result.numel()) * result.element_size());
  return result;
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType type, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
  return empty(sizes, strides, type, like);
}

// [N, C, *spatial] seen as [N, C, S]: strides in elements.
struct Pixels {
  Tensor tensor;
  int64_t batch, classes, pixels;
  int64_t stride_n, stride_c, stride_s;
  bool planar() const { return stride_s == 1; }
};

// The stride of the spatial dimensions seen as one, if they can be; 1 for a single pixel.
inline std::optional<int64_t> joint_spatial_stride(const Tensor& t) {
  std::optional<int64_t> innermost;
  int64_t expected = 0;
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    if (t.size(d) == 1) continue;
    if (innermost && t.stride(d) != expected) return std::nullopt;
    if (!innermost) innermost = t.stride(d);
    expected = t.stride(d) * t.size(d);
  }
  return innermost ? innermost : std::optional<int64_t>(1);
}

// Planar and channels-last tensors as they are, anything else through one contiguous copy.
inline Pixels as_pixels(const Tensor& t) {
  std::optional<int64_t> spatial = joint_spatial_stride(t);
  const bool usable = spatial && (*spatial == 1 || t.stride(1) == 1);
  Pixels p{usable ? t : torch::stable::contiguous(t), t.size(0), t.size(1), 1, 0, 0, 0};
  for (int64_t d = 2; d < t.dim(); ++d) p.pixels *= t.size(d);
  p.stride_n = p.tensor.stride(0);
  p.stride_c = p.tensor.stride(1);
  p.stride_s = usable ? *spatial : 1;
  return p;
}

// A new tensor of t's shape: contiguous, or channels last if p is that and not also planar.
inline Tensor empty_like_pixels(const Tensor& t, const Pixels& p, ScalarType type) {
  const std::vector<int64_t> sizes = sizes_of(t);
  if (p.planar()) return empty(sizes, type, t);
  std::vector<int64_t> strides(sizes.size());
  int64_t step = sizes[1];
  for (size_t d = sizes.size(); d-- > 2;) {
    strides[d] = step;
    step *= sizes[d];
  }
  strides[1] = 1;
  strides[0] = step;
  return empty(sizes, strides, type, t);
}
inline Tensor empty_like_pixels(const Tensor& t, const Pixels& p) { return empty_like_pixels(t, p, t.scalar_type()); }

#ifdef SEGOPS_DEVICE_KERNELS
// Where kernels of csrc/cuda are queued: the current stream of a tensor's device, which is made the current device. The
// host execution (CPU tensors) knows no streams.
class Queue {
 public:
  explicit Queue(const Tensor& t) {
    if (t.is_cpu()) return;
#ifdef USE_CUDA
    guard_.emplace(t.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
#endif
  }
  void* stream() const { return stream_; }

 private:
#ifdef USE_CUDA
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
  void* stream_ = nullptr;
};

// Memory on the device of `like`, aligned to 16 bytes at least.
inline Tensor scratch_of(int64_t bytes, const Tensor& like) { return empty({bytes}, ScalarType::Byte, like); }

inline void check(cuda::Failure failure, const char* op) {
  check(failure == nullptr, "segops.", op, ": ", failure ? failure : "");
}
#endif

// The framework's own threads; in a build for ThreadSanitizer, which does not see how those wait for each other, new ones.
inline Parallel threads() {
  uint32_t count = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&count));
  return Parallel{static_cast<int32_t>(count), [](int32_t workers, void (*body)(void*, int32_t), void* context) {
#ifdef SEGOPS_OWN_THREADS
                    std::vector<std::thread> running;
                    for (int32_t w = 0; w < workers; ++w) running.emplace_back(body, context, w);
                    for (std::thread& one : running) one.join();
#else
                    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
                      for (int64_t w = begin; w < end; ++w) body(context, static_cast<int32_t>(w));
                    });
#endif
                  }};
}

}  // namespace segops::binding
