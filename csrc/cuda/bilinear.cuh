// Coarse rows as the output's columns see them, in registers: the horizontal half of a bilinear interpolation.
#pragma once
#include "planes.cuh"
#include "segops/interpolate.h"

namespace segops::cuda {

template <class A>
__device__ __forceinline__ A blend(A low, A high, A weight) {
  return (A(1) - weight) * low + weight * high;
}

// V neighbouring outputs of a row, whose inputs lie side by side. Outputs that are closer than inputs share them: going from
// left to right, each input is loaded once.
template <class T, int V>
struct RowColumns {
  using A = AccumulatorOf<T>;
  int low[V], last;
  A weight[V];

  // Outputs beyond the row's end are read like the last.
  __device__ __forceinline__ RowColumns(const LinearAxis& axis, int first) : last(static_cast<int>(axis.in) - 1) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t at = first + v < axis.out ? first + v : axis.out - 1;
      const LinearTap tap = linear_tap(axis, at);
      low[v] = static_cast<int>(tap.low);
      weight[v] = static_cast<A>(tap.weight);
    }
  }

  __device__ __forceinline__ void read(const T* row, A (&value)[V]) const {
    A left = at(row, low[0]), right = at(row, low[0] + 1);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (v > 0 && low[v] != low[v - 1]) {
        left = low[v] == low[v - 1] + 1 ? right : at(row, low[v]);
        right = at(row, low[v] + 1);
      }
      value[v] = blend(left, right, weight[v]);
    }
  }

 private:
  __device__ __forceinline__ A at(const T* row, int x) const { return widen<A>(device::load(row + (x < last ? x : last))); }
};

// V neighbouring channels of one output pixel, or one element of any layout.
template <class T, int V>
struct PixelColumn {
  using A = AccumulatorOf<T>;
  int64_t low, high;
  A weight;

  __device__ __forceinline__ PixelColumn(const LinearAxis& axis, int x, int64_t stride_w) {
    const LinearTap tap = linear_tap(axis, x < axis.out ? x : axis.out - 1);
    low = tap.low * stride_w;
    high = tap.high * stride_w;
    weight = static_cast<A>(tap.weight);
  }

  __device__ __forceinline__ void read(const T* row, A (&value)[V]) const {
    T left[V], right[V];
    load_vector(row + low, left);
    load_vector(row + high, right);
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] = blend(widen<A>(left[v]), widen<A>(right[v]), weight);
  }
};

// The two coarse rows between which an output row lies. Output rows that are closer than coarse rows share them: going down,
// each is read once.
template <class A, int V>
struct CoarseRows {
  A top[V] = {}, bottom[V] = {};
  int held = -2;  // which row `top` is

  // last: the last coarse row.
  template <class Columns, class T>
  __device__ __forceinline__ void move_to(const Columns& columns, const T* plane, int64_t stride_h, int low, int last) {
    if (low == held) return;
    if (low == held + 1) {
#pragma unroll
      for (int v = 0; v < V; ++v) top[v] = bottom[v];
    } else {
      columns.read(plane + low * stride_h, top);
    }
    columns.read(plane + (low < last ? low + 1 : last) * stride_h, bottom);
    held = low;
  }
};

}  // namespace segops::cuda
