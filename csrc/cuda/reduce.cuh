// Reductions in a fixed order: the same sums for the same shapes, whatever the device and the schedule.
#pragma once
#include "common.cuh"

namespace segops::cuda {

// The sum over the warp, in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int mask = device::kWarp / 2; mask > 0; mask /= 2) v += device::shuffle_xor(v, mask);
  return v;
}

// Sums of `count` values (a power of two, at most 32) over the warp in count - 1 + log2(32 / count) shuffles: at each step a
// lane hands half of its values to its partner and takes over the partner's other half. The sum of v[i] ends up in the
// lanes with lane / (32 / count) == i, which is where it is returned.
template <int count, class T>
__device__ __forceinline__ T warp_sums(T (&v)[count]) {
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  int mask = device::kWarp / 2;
#pragma unroll
  for (int half = count / 2; half > 0; half /= 2, mask /= 2) {
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T given = upper ? v[i] : v[i + half];
      v[i] = (upper ? v[i + half] : v[i]) + device::shuffle_xor(given, mask);
    }
  }
  T total = v[0];
#pragma unroll
  for (int rest = device::kWarp / 2 / count; rest > 0; rest /= 2) total += device::shuffle_xor(total, rest);
  return total;
}

// The sum over a block of kThreads threads, in every thread. `scratch` is shared memory for one value a warp; it may be used
// again after the next barrier.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T v, T* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / device::kWarp;
  v = warp_sum(v);
  SYNC_THREADS();
  if (threadIdx.x % device::kWarp == 0) scratch[warp] = v;
  SYNC_THREADS();
  T total = 0;
  for (int w = 0; w < kThreads / device::kWarp; ++w) total += scratch[w];
  return total;
}

// Two records of bad data as one: what was first, and how often.
__device__ __forceinline__ BadData merge(const BadData& a, const BadData& b) {
  const bool later = b.count > 0 && (a.count == 0 || b.position < a.position);
  return {a.count + b.count, later ? b.position : a.position, later ? b.value : a.value};
}

// Of all lanes of the warp, in every lane.
__device__ __forceinline__ BadData warp_merge(BadData bad) {
#pragma unroll
  for (int mask = device::kWarp / 2; mask > 0; mask /= 2)
    bad = merge(bad, {device::shuffle_xor(bad.count, mask), device::shuffle_xor(bad.position, mask),
                      device::shuffle_xor(bad.value, mask)});
  return bad;
}

}  // namespace segops::cuda
