// From the dtype of a launch to the types that its kernel is instantiated for.
#pragma once
#include "segops/types.h"
#include "vec.h"

namespace segops::SEGOPS_ISA {

// Calls run<T, In>() for a floating-point dtype: In is an element in memory, T the type that it is computed in.
template <class Run>
inline Status as_float(Dtype dtype, const Run& run) {
  switch (dtype) {
    case Dtype::float32: return run.template operator()<float, float>();
    case Dtype::float64: return run.template operator()<double, double>();
    case Dtype::bfloat16: return run.template operator()<float, BFloat16>();
    case Dtype::float16: return run.template operator()<float, Float16>();
    default: return Status::unsupported;
  }
}

// Calls run<U>(), U being an unsigned type of the size of any dtype, for kernels that move elements as they are.
template <class Run>
inline Status as_bits(Dtype dtype, const Run& run) {
  switch (bytes_of(dtype)) {
    case 1: return run.template operator()<uint8_t>();
    case 2: return run.template operator()<uint16_t>();
    case 4: return run.template operator()<uint32_t>();
    default: return run.template operator()<uint64_t>();
  }
}

}  // namespace segops::SEGOPS_ISA
