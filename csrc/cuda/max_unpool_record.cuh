// The record of indices that point nowhere. Threads count them in integers, so that their order does not matter; the first
// is kept as the largest complement, for which zero stands for none.
#pragma once
#include "planes.cuh"
#include "segops/max_unpool.h"

namespace segops::cuda {
namespace {

// What one thread has found.
struct BadCount {
  unsigned count = 0;
  int64_t first = 0;

  __device__ __forceinline__ void add(int64_t position) {
    first = count == 0 || position < first ? position : first;
    ++count;
  }
  __device__ __forceinline__ void report(BadData* record) const {
    if (count == 0 || record == nullptr) return;
    device::atomic_add(reinterpret_cast<unsigned long long*>(&record->count), static_cast<unsigned long long>(count));
    device::atomic_max(reinterpret_cast<unsigned long long*>(&record->position), static_cast<unsigned long long>(~first));
  }
};

template <class Index>
__global__ void max_unpool_begin_record_kernel(BadData* record) {
  *record = BadData{0, 0, 0};
}

template <class Index>
__global__ void max_unpool_end_record_kernel(BadData* record, PlanesOf<const Index> indices) {
  if (record->count == 0) return;
  const int64_t position = ~record->position;
  const int64_t x = position % indices.width, rows = position / indices.width;
  const int64_t y = rows % indices.height, planes = rows / indices.height;
  const int64_t c = planes % indices.channels, n = planes / indices.channels;
  record->position = position;
  record->value = static_cast<int64_t>(
      indices.data[n * indices.stride_n + c * indices.stride_c + y * indices.stride_h + x * indices.stride_w]);
}

// launch() between the two, where somebody asks for the record.
template <class Index, class Launch>
cudaError_t with_record(BadData* record, const PlanesOf<const Index>& indices, cudaStream_t stream, const Launch& launch) {
  if (record == nullptr) return launch();
  cudaError_t error = LAUNCH(max_unpool_begin_record_kernel<Index>, 1, 1, 0, stream, record);
  if (error == cudaSuccess) error = launch();
  if (error != cudaSuccess) return error;
  return LAUNCH(max_unpool_end_record_kernel<Index>, 1, 1, 0, stream, record, indices);
}

}  // namespace
}  // namespace segops::cuda
