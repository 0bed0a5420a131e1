// The gather of upsample_bilinear's backward: the gradient of a coarse row is a weighted sum of the fine rows that read it,
// and that of a coarse column, of the columns of this sum.
#pragma once
#include "upsample_bilinear_columns.h"

namespace segops::SEGOPS_ISA {

// to[k] = sum over the outputs i that read input j of their weight times from[i * stride + k], for k < n.
// ahead: which row is prefetched when one is read for the first time.
template <class A, bool kPrefetch, class To, class From>
SEGOPS_INLINE void gather_rows(To* to, const From* from, int64_t stride, int64_t n, const Windows<A>& windows, int64_t j,
                               int64_t ahead = 0) {
  constexpr int kNative = kNativeLanes<A>, kTile = 4;
  const int64_t begin = windows.begin(j), middle = windows.middle(j), end = windows.end(j);
  int64_t tiled = 0;
  for (; tiled + kTile * kNative <= n; tiled += kTile * kNative) {
    Vec<A, kNative> sum[kTile] = {};
    const auto add = [&](int64_t i, A weight) {
      for (int k = 0; k < kTile; ++k) sum[k] += weight * load<kNative, A>(from + i * stride + tiled + k * kNative);
    };
    for (int64_t i = begin; i < middle; ++i) add(i, windows.rising[i]);
    for (int64_t i = middle; i < end; ++i) {
      if constexpr (kPrefetch) prefetch<kTile * kNative>(from + (i + ahead) * stride + tiled);
      add(i, windows.falling[i]);
    }
    for (int k = 0; k < kTile; ++k) store<kNative>(to + tiled + k * kNative, sum[k]);
  }
  for_vectors<kNative>(n - tiled, [&](auto lanes, int64_t k) {
    constexpr int kLanes = decltype(lanes)::value;
    Vec<A, kLanes> sum = {};
    for (int64_t i = begin; i < middle; ++i) sum += windows.rising[i] * load<kLanes, A>(from + i * stride + tiled + k);
    for (int64_t i = middle; i < end; ++i) sum += windows.falling[i] * load<kLanes, A>(from + i * stride + tiled + k);
    store<kLanes>(to + tiled + k, sum);
  });
}

template <class T>
struct Backward {
  using A = typename AccumulatorOf<T>::type;

  const UpsampleBilinearBackward& p;
  const Windows<A>&vertical, &horizontal;
  const ColumnGather<A>& columns;
  int64_t ahead;  // rows

  static int64_t sum_elements(const UpsampleBilinearBackward& p) {
    return padded(ColumnGather<A>::row_elements(p.grad_output.width));
  }
  static int64_t scratch_elements(const UpsampleBilinearBackward& p, bool across) {
    const int64_t width = p.grad_output.width;
    return across ? padded(width * p.grad_output.channels) : sum_elements(p) + padded(width) + padded(p.grad_input.width);
  }

  void planar(int64_t plane, int64_t first, int64_t end, A* scratch) const {
    const T* from = plane_of<const T>(p.grad_output, plane);
    T* const to = plane_of<T>(p.grad_input, plane);
    const int64_t width = p.grad_output.width, coarse_width = p.grad_input.width;
    A *const sums = scratch + ColumnGather<A>::kFront, *const row = scratch + sum_elements(p),
             *const grad = row + padded(width);
    for (int64_t j = first; j < end; ++j) {
      if (p.grad_output.stride_w == 1) {
        gather_rows<A, true>(sums, from, p.grad_output.stride_h, width, vertical, j, ahead);
      } else {
        for (int64_t x = 0; x < width; ++x) sums[x] = 0;
        for (int64_t y = vertical.begin(j); y < vertical.end(j); ++y) {
          load_row<A, T>(row, from + y * p.grad_output.stride_h, p.grad_output.stride_w, width);
          for (int64_t x = 0; x < width; ++x) sums[x] += vertical.weight(j, y) * row[x];
        }
      }
      columns.run(grad, sums);
      store_row<A, T>(to + j * p.grad_input.stride_h, p.grad_input.stride_w, grad, coarse_width);
    }
  }

  void across(int64_t image, int64_t first, int64_t end, A* sums) const {
    const T* from = static_cast<const T*>(p.grad_output.data) + image * p.grad_output.stride_n;
    T* const to = static_cast<T*>(p.grad_input.data) + image * p.grad_input.stride_n;
    const int64_t channels = p.grad_input.channels, width = p.grad_output.width;
    for (int64_t j = first; j < end; ++j) {
      const int64_t stride_h = p.grad_output.stride_h, stride_w = p.grad_output.stride_w;
      if (stride_w == channels)
        gather_rows<A, true>(sums, from, stride_h, width * channels, vertical, j, ahead);
      else
        for (int64_t x = 0; x < width; ++x)
          gather_rows<A, true>(sums + x * channels, from + x * stride_w, stride_h, channels, vertical, j, ahead);
      T* const row = to + j * p.grad_input.stride_h;
      for (int64_t i = 0; i < p.grad_input.width; ++i)
        gather_rows<A, false>(row + i * p.grad_input.stride_w, sums, channels, channels, horizontal, i);
    }
  }
};

template <class T>
Status run_backward(const UpsampleBilinearBackward& p, const Parallel& parallel) {
  using A = typename AccumulatorOf<T>::type;
  const Planes& to = p.grad_input;
  const bool across = across_channels(to) && across_channels(p.grad_output);
  const Taps<A> vertical_taps(p.vertical), horizontal_taps(p.horizontal);
  const Windows<A> vertical(vertical_taps), horizontal(horizontal_taps);
  const ColumnGather<A> columns(horizontal, p.horizontal);
  const int64_t elements = padded(Backward<T>::scratch_elements(p, across));
  Memory scratch(parallel.workers * elements * static_cast<int64_t>(sizeof(A)));
  if (!vertical_taps.ok() || !horizontal_taps.ok() || !vertical.ok() || !horizontal.ok() || !columns.ok() || !scratch.data)
    return Status::out_of_memory;
  const int64_t fine_rows = (p.grad_output.height + to.height - 1) / to.height;
  const Backward<T> backward{p, vertical, horizontal, columns, rows_ahead<T>(fine_rows, p.grad_output.stride_h)};
  A* const memory = reinterpret_cast<A*>(scratch.data);
  const int64_t row = (across ? to.channels : 1) * p.grad_output.width * fine_rows;
  const RowItems items(across ? to.batch : to.batch * to.channels, to.height, row);
  items.run(parallel, [&](int64_t image, int64_t first, int64_t end, int32_t worker) {
    A* const own = memory + worker * elements;
    return across ? backward.across(image, first, end, own) : backward.planar(image, first, end, own);
  });
  return Status::ok;
}

}  // namespace segops::SEGOPS_ISA
