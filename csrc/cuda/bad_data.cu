// What a device has seen of bad labels and indices, where nobody reads an operator's own record: inside compiled graphs, and
// where they are only counted. In the device's own memory: nothing is allocated, so CUDA graphs may hold this.
#include "reduce.cuh"

namespace segops::cuda {
namespace {

__device__ BadData seen[3];  // by on_bad, from 1 on: counted; to be raised; soft labels to be raised

// One thread, so that records are merged in the order of the stream; two streams may each lose the other's position.
__global__ void note_bad_data_kernel(const BadData* record, int64_t on_bad) {
  const BadData bad = *record;
  if (bad.count == 0) return;
  BadData& into = seen[on_bad - 1];
  const unsigned long long before =
      device::atomic_add(reinterpret_cast<unsigned long long*>(&into.count), static_cast<unsigned long long>(bad.count));
  if (before != 0) return;
  into.position = bad.position;
  into.value = bad.value;
}

__global__ void take_bad_data_kernel(BadData* out, int64_t on_bad) {
  BadData& from = seen[on_bad - 1];
  *out = from;
  from = BadData{0, 0, 0};
}

}  // namespace

Failure note_bad_data(const BadData* record, int64_t on_bad, void* stream) {
  return failure(LAUNCH(note_bad_data_kernel, 1, 1, 0, static_cast<cudaStream_t>(stream), record, on_bad));
}

Failure take_bad_data(BadData* out, int64_t on_bad, void* stream) {
  return failure(LAUNCH(take_bad_data_kernel, 1, 1, 0, static_cast<cudaStream_t>(stream), out, on_bad));
}

}  // namespace segops::cuda
