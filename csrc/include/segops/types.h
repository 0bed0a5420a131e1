// Types shared by every contract header: element types, layouts and launch results. Free of torch and of the STL, so that
// kernels for any instruction set or device can include it.
#pragma once
#include <stdint.h>

// Of the libraries' own functions, only those that another library of segops calls are visible.
#define SEGOPS_EXPORT __attribute__((visibility("default")))

// On functions that kernels of the host and of the device share. On the host they are always inlined: one copy, of whatever
// instruction set, would serve all levels, and round otherwise than the copies beside it.
#ifdef __CUDACC__
#define SEGOPS_HOST_DEVICE __host__ __device__
#else
#define SEGOPS_HOST_DEVICE __attribute__((always_inline))
#endif

namespace segops {

enum class Dtype : int32_t { float32, float64, bfloat16, float16, uint8, int16, int32, int64, int8 };

SEGOPS_HOST_DEVICE constexpr int64_t bytes_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
    case Dtype::int64: return 8;
    case Dtype::float32:
    case Dtype::int32: return 4;
    case Dtype::uint8:
    case Dtype::int8: return 1;
    default: return 2;
  }
}

// Labels and indices that are data, not shapes, are reported here instead of being trusted: what was wrong first (in
// row-major order), and how often.
struct BadData {
  int64_t count;
  int64_t position;  // flat index of the first bad element
  int64_t value;
};
constexpr int64_t kBadDataFields = 3;

// What a launcher returns; a kernel never throws.
enum class Status : int32_t { ok, out_of_memory, unsupported };

}  // namespace segops
