// Small things that every kernel file needs on top of device.cuh.
#pragma once
#include "device.cuh"
#include "launch.h"
#ifdef SEGOPS_SIMT
#include "api.h"
#endif

namespace segops::cuda {

inline Failure failure(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
#ifdef SEGOPS_SIMT
  return simt_last_report();
#else
  cudaGetLastError();  // told here: not to be found by the next launch
  return cudaGetErrorString(error);
#endif
}

// Offsets of parts of dynamic shared memory, each aligned to 16 bytes.
struct Parts {
  int bytes = 0;
  SEGOPS_HOST_DEVICE int take(int64_t size) {
    const int begin = bytes;
    bytes += static_cast<int>((size + 15) / 16 * 16);
    return begin;
  }
};

// memcpy between types of the same bits, 16-bit floats among them.
template <class To, class From>
__device__ __forceinline__ void copy_bits(To* to, const From* from, size_t bytes) {
  memcpy(static_cast<void*>(to), static_cast<const void*>(from), bytes);
}

// What sums are kept in: float, double for double.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using AccumulatorOf = typename Accumulator<T>::type;

inline int64_t accumulator_bytes(Dtype dtype) { return dtype == Dtype::float64 ? 8 : 4; }

// Calls with a number of the floating-point type `dtype`.
template <class Call>
auto as_float(Dtype dtype, const Call& call) {
  switch (dtype) {
    case Dtype::float32: return call(float{});
    case Dtype::float64: return call(double{});
    case Dtype::bfloat16: return call(__nv_bfloat16{});
    default: return call(__half{});
  }
}

// Calls with an unsigned number of the bytes of a floating-point type: of elements that are only moved.
template <class Call>
auto as_float_bits(Dtype dtype, const Call& call) {
  switch (bytes_of(dtype)) {
    case 2: return call(uint16_t{});
    case 4: return call(uint32_t{});
    default: return call(uint64_t{});
  }
}

// Of any type.
template <class Call>
auto as_bits(Dtype dtype, const Call& call) {
  return bytes_of(dtype) == 1 ? call(uint8_t{}) : as_float_bits(dtype, call);
}

template <class A, class T>
__device__ __forceinline__ A widen(T value) {
  if constexpr (sizeof(A) == 8)
    return static_cast<A>(value);
  else
    return device::to_float(value);
}

template <class T, class A>
__device__ __forceinline__ T narrow(A value) {
  if constexpr (sizeof(T) == 8)
    return value;
  else
    return device::from_float<T>(value);
}

// e^x for x <= 0, as exactly as numbers of type T need it. The hardware's 2^x alone is off by |x| units in the last place:
// nothing for 16-bit logits, but float gradients far from the maximum would lose digits.
template <class T, class A>
__device__ __forceinline__ A exponential(A x) {
  if constexpr (sizeof(T) == 2)
    return device::exp2_approx(x * 1.44269504089f);
  else if constexpr (sizeof(T) == 4)
    return expf(x);
  else
    return exp(x);
}

__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

// The larger of two numbers; a NaN is passed over.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

}  // namespace segops::cuda
