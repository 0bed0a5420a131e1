// upsample_nearest2d backward: each input's gradient is the sum, in row-major order, over the outputs that are it.
//
// Planar and a whole multiple as wide, a thread loads a vector of a fine row at once: the addends of its own sums, no
// others. Otherwise it loads them one by one, or a vector of channels at a time.
#include "planes.cuh"
#include "segops/upsample_nearest.h"

namespace segops::cuda {
namespace {

constexpr int kMostRows = device::kWarp - 1;  // a lane works out where each begins, and one lane more where the last ends

// Calls emit(row of the strip, first fine row, how many) for each row; for all lanes of a warp alike.
template <class Emit>
__device__ __forceinline__ void for_each_row(const NearestAxis& axis, const Place& place, const Emit& emit) {
  const int own_first = static_cast<int>(first_nearest_output(axis, static_cast<int64_t>(place.row) + lane_of_warp()));
  for (int r = 0; r < place.rows; ++r) {
    const int first = device::shuffle(own_first, r);
    emit(r, first, device::shuffle(own_first, r + 1) - first);
  }
}

// V sums side by side, each of kTimes fine columns.
template <class T, int V, int kTimes>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    upsample_nearest_backward_whole_kernel(UpsampleNearestBackward p, Tiling tiling) {
  using A = AccumulatorOf<T>;
  const Place place(tiling, V);
  const T* const plane = place.begin<const T>(p.grad_output) + place.column * (V * kTimes);
  T* const to = place.begin<T>(p.grad_input) + place.column * V;
  for_each_row(p.vertical, place, [&](int r, int first, int rows) {
    if (!place.active) return;
    A sum[V] = {};
    const T* fine = plane + first * p.grad_output.stride_h;
#pragma unroll 2
    for (int i = 0; i < rows; ++i, fine += p.grad_output.stride_h) {
      T loaded[V * kTimes];
      load_vector(fine, loaded);
#pragma unroll
      for (int v = 0; v < V * kTimes; ++v) sum[v / kTimes] += widen<A>(loaded[v]);
    }
    T out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = narrow<T>(sum[v]);
    store_vector(to + (place.row + r) * p.grad_input.stride_h, out);
  });
}

// V channels of a pixel, or one element of any layout.
template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, 1)
    upsample_nearest_backward_kernel(UpsampleNearestBackward p, Tiling tiling) {
  using A = AccumulatorOf<T>;
  const Place place(tiling, V);
  const int from = static_cast<int>(first_nearest_output(p.horizontal, place.column));
  const int columns = static_cast<int>(first_nearest_output(p.horizontal, place.column + int64_t{1})) - from;
  const int64_t stride = p.grad_output.stride_w;
  const T* const plane = place.begin<const T>(p.grad_output) + from * stride;
  T* const to = place.begin<T>(p.grad_input) + place.column * p.grad_input.stride_w;
  for_each_row(p.vertical, place, [&](int r, int first, int rows) {
    if (!place.active) return;
    A sum[V] = {};
    for (int i = 0; i < rows; ++i) {
      const T* fine = plane + (first + i) * p.grad_output.stride_h;
#pragma unroll 2
      for (int x = 0; x < columns; ++x, fine += stride) {
        T loaded[V];
        load_vector(fine, loaded);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += widen<A>(loaded[v]);
      }
    }
    T out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = narrow<T>(sum[v]);
    store_vector(to + (place.row + r) * p.grad_input.stride_h, out);
  });
}

template <class T, int V, int kTimes>
cudaError_t launch_whole(const UpsampleNearestBackward& p, cudaStream_t stream) {
  const Tiling tiling(p.grad_input, V, false, kMostRows);
  return over(tiling, [&] {
    return LAUNCH((upsample_nearest_backward_whole_kernel<T, V, kTimes>), tiling.grid(), tiling.threads(), 0, stream, p,
                  tiling);
  });
}

template <class T, int V>
cudaError_t launch(const UpsampleNearestBackward& p, bool across, cudaStream_t stream) {
  const Tiling tiling(p.grad_input, V, across, kMostRows);
  return over(tiling, [&] {
    return LAUNCH((upsample_nearest_backward_kernel<T, V>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
  });
}

// Whether the axis repeats each of its inputs `times` times, and its rows consist of whole vectors on either side.
template <class T, int kTimes>
bool repeats(const UpsampleNearestBackward& p) {
  constexpr int64_t V = kVector<T> / kTimes;
  const NearestAxis& axis = p.horizontal;
  if (axis.out != kTimes * axis.in || axis.in % V != 0) return false;
  if (!vectors_fit(p.grad_input, sizeof(T), true, V * static_cast<int64_t>(sizeof(T)))) return false;
  // A scale beside the sizes, or a coordinate rounded down, may shift some.
  for (int64_t i = 0; kTimes != 2 && i < axis.in; ++i)
    if (nearest_source(axis, kTimes * i) != i || nearest_source(axis, kTimes * i + kTimes - 1) != i) return false;
  return true;
}

template <class T>
cudaError_t backward(const UpsampleNearestBackward& p, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  if (is_planar(p.grad_output) && is_planar(p.grad_input)) {
    if (vectors_fit(p.grad_output, sizeof(T), true)) {
      if (repeats<T, 2>(p)) return launch_whole<T, V / 2, 2>(p, stream);
      if constexpr (V >= 4)
        if (repeats<T, 4>(p)) return launch_whole<T, V / 4, 4>(p, stream);
      if constexpr (V >= 8)
        if (repeats<T, 8>(p)) return launch_whole<T, V / 8, 8>(p, stream);
    }
    return launch<T, 1>(p, false, stream);
  }
  if (vectors_fit(p.grad_output, sizeof(T), false) && vectors_fit(p.grad_input, sizeof(T), false))
    return launch<T, V>(p, true, stream);
  return launch<T, 1>(p, true, stream);
}

}  // namespace

Failure upsample_nearest2d_backward(const UpsampleNearestBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.dtype, [&]<class T>(T) { return backward<T>(p, queue); }));
}

}  // namespace segops::cuda
