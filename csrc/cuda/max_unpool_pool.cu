// max_pool2d: the maximum of each window, and where in the window it is. A thread owns a vector of windows, walks down with
// it, and looks at the taps in row-major order.
#include <type_traits>

#include "max_unpool.cuh"

namespace segops::cuda {
namespace {

struct Pool {
  ConstPlanes input;
  Planes output;
  PlanesOf<uint8_t> indices;
  Windows windows;
};

// What numbers are compared as.
template <class T>
__device__ __forceinline__ auto comparable(T value) {
  if constexpr (std::is_arithmetic_v<T>)
    return value;
  else
    return device::to_float(value);
}

// Whether a value takes the place of the maximum so far: the first among equals, the last among NaNs.
template <class T>
__device__ __forceinline__ bool wins(T value, T best) {
  const auto a = comparable(value), b = comparable(best);
  return a > b || a != a;
}

// 2x2 windows, planar: V elements of two rows are V / 2 windows.
template <class T>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_pool_pairs_kernel(Pool p, Tiling tiling) {
  constexpr int V = kVector<T>, kWindows = V / 2;
  const Place place(tiling, kWindows);
  if (!place.active) return;
  const int first = place.column * kWindows, height = p.windows.vertical.size;
  const T* from = place.begin<const T>(p.input) + int64_t{2} * place.row * p.input.stride_h + 2 * first;
  T* to = place.begin<T>(p.output) + place.row * p.output.stride_h + first;
  uint8_t* at = place.begin<uint8_t>(p.indices) + place.row * p.indices.stride_h + first;
#pragma unroll 2
  for (int r = 0; r < place.rows; ++r) {
    T top[V], bottom[V], best[kWindows];
    uint8_t local[kWindows];
    const bool whole = 2 * (place.row + r) + 1 < height;
    load_vector(from, top);
    if (whole) load_vector(from + p.input.stride_h, bottom);
#pragma unroll
    for (int q = 0; q < kWindows; ++q) {
      best[q] = top[2 * q];
      local[q] = 0;
      const auto look = [&](T value, uint8_t tap) {
        if (!wins(value, best[q])) return;
        best[q] = value;
        local[q] = tap;
      };
      look(top[2 * q + 1], 1);
      if (!whole) continue;
      look(bottom[2 * q], 2);
      look(bottom[2 * q + 1], 3);
    }
    store_vector(to, best);
    store_vector(at, local);
    from += 2 * p.input.stride_h;
    to += p.output.stride_h;
    at += p.indices.stride_h;
  }
}

// Any windows: V channels of a pixel, or one element of any layout.
template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, 1) max_pool_kernel(Pool p, Tiling tiling) {
  const Place place(tiling, V);
  if (!place.active) return;
  const Axis &vertical = p.windows.vertical, &horizontal = p.windows.horizontal;
  const T* const plane = place.begin<const T>(p.input);
  T* const to = place.begin<T>(p.output) + place.column * p.output.stride_w;
  uint8_t* const at = place.begin<uint8_t>(p.indices) + place.column * p.indices.stride_w;
  const int left = static_cast<int>(horizontal.begin(place.column));
  for (int r = 0; r < place.rows; ++r) {
    const int row = place.row + r;
    T best[V] = {};
    uint8_t local[V] = {};
    bool started = false;
    int y = static_cast<int>(vertical.begin(row)), tap = 0;
    for (int i = 0; i < vertical.kernel; ++i, y += vertical.dilation, tap += horizontal.kernel) {
      if (static_cast<unsigned>(y) >= static_cast<unsigned>(vertical.size)) continue;
      int x = left;
      for (int j = 0; j < horizontal.kernel; ++j, x += horizontal.dilation) {
        if (static_cast<unsigned>(x) >= static_cast<unsigned>(horizontal.size)) continue;
        T value[V];
        load_vector(plane + y * p.input.stride_h + x * p.input.stride_w, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const bool better = !started || wins(value[v], best[v]);
          best[v] = better ? value[v] : best[v];
          local[v] = better ? static_cast<uint8_t>(tap + j) : local[v];
        }
        started = true;
      }
    }
    store_vector(to + row * p.output.stride_h, best);
    store_vector(at + row * p.indices.stride_h, local);
  }
}

template <class T, int V>
cudaError_t any(const Pool& p, cudaStream_t stream) {
  const Tiling tiling(p.output, V, V > 1 || !is_planar(p.output), kMostWindowRows);
  return over(tiling,
              [&] { return LAUNCH((max_pool_kernel<T, V>), tiling.grid(), tiling.threads(), 0, stream, p, tiling); });
}

template <class T>
cudaError_t pool(const Pool& p, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  switch (form_of(p.windows, p.output, p.indices, p.input, sizeof(T))) {
    case Form::pairs: {
      const Tiling tiling(p.output, V / 2, false, kMostWindowRows);
      return over(tiling,
                  [&] { return LAUNCH(max_pool_pairs_kernel<T>, tiling.grid(), tiling.threads(), 0, stream, p, tiling); });
    }
    case Form::channels: return any<T, V>(p, stream);
    default: return any<T, 1>(p, stream);
  }
}

}  // namespace

Failure max_pool2d(const MaxPool& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t h = p.output.height, w = p.output.width, height = p.input.height, width = p.input.width;
  if (!Axis::fits(p.vertical, h, height) || !Axis::fits(p.horizontal, w, width)) return failure(cudaErrorInvalidValue);
  const Pool q{p.input, p.output, p.indices, Windows(p.vertical, p.horizontal, h, w, height, width)};
  switch (p.dtype) {
    case Dtype::uint8: return failure(pool<uint8_t>(q, queue));
    case Dtype::int8: return failure(pool<int8_t>(q, queue));
    case Dtype::int16: return failure(pool<int16_t>(q, queue));
    case Dtype::int32: return failure(pool<int32_t>(q, queue));
    case Dtype::int64: return failure(pool<int64_t>(q, queue));
    default: return failure(as_float(p.dtype, [&]<class T>(T) { return pool<T>(q, queue); }));
  }
}

}  // namespace segops::cuda
