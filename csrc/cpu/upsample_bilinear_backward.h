// The gather of upsample_bilinear's backward: the gradient of a coarse row is a weighted sum of the fine rows that read it,
// and that of a coarse column, of the columns of this sum.
#pragma once
#include "upsample_bilinear_rows.h"

namespace segops::SEGOPS_ISA {

// The taps of an axis as its inputs see them: input j is read by the outputs from first[j - 1] on with weight rising[i], and
// from first[j] to first[j + 1] with weight falling[i].
template <class A>
struct Windows {
  int64_t in, out;
  Memory memory;
  A *rising, *falling;
  int32_t* first;

  explicit Windows(const Taps<A>& taps)
      : in(taps.in), out(taps.out), memory(2 * out * static_cast<int64_t>(sizeof(A)) + (in + 1) * 4) {
    if (!memory.data || !taps.ok()) return;
    rising = reinterpret_cast<A*>(memory.data);
    falling = rising + out;
    first = reinterpret_cast<int32_t*>(falling + out);
    int64_t j = 0;
    for (int64_t i = 0; i < out; ++i) {
      for (; j <= taps.low[i]; ++j) first[j] = static_cast<int32_t>(i);
      rising[i] = taps.weight[i];
      falling[i] = taps.low[i] == in - 1 ? A(1) : A(1) - taps.weight[i];
    }
    for (; j <= in; ++j) first[j] = static_cast<int32_t>(out);
  }
  bool ok() const { return memory.data != nullptr; }

  int64_t begin(int64_t j) const { return j > 0 ? first[j - 1] : 0; }
  int64_t middle(int64_t j) const { return first[j]; }
  int64_t end(int64_t j) const { return first[j + 1]; }
  A weight(int64_t j, int64_t i) const { return i < first[j] ? rising[i] : falling[i]; }
};

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

// The horizontal half of a planar gather, by scales:
// kTree: a scale of 2, 4 or 8 from sizes alone. All windows are 2 * scale outputs long and 2 * scale of them fit the lanes
// of
//        as many vectors: products are loaded side by side, and a tree of pairwise sums leaves a vector of sums.
// else:  taps are gathered one by one, from tables for a vector of inputs, or without tables where there are few inputs.
template <class A>
struct ColumnGather {
  static constexpr int kLanes = kNativeLanes<A>;
  static constexpr int64_t kFront = 16;  // zeros before the row of sums
  using V = Vec<A, kLanes>;

  const Windows<A>& windows;
  int scale;  // of the tree, or 0
  Memory memory;
  A* weights;  // tree: [vectors of inputs, 2 * scale, kLanes]
  bool tables_ok;

  static int tree_scale(const LinearAxis& axis) {
    for (int scale = 2; scale <= 8; scale *= 2)
      if (2 * scale <= kLanes && !axis.align_corners && axis.out == axis.in * scale && axis.step * scale == 1) return scale;
    return 0;
  }
  int64_t vectors() const { return (windows.in + kLanes - 1) / kLanes; }
  // The row of sums, zeros before and after it included.
  static int64_t row_elements(int64_t in, int64_t out) {
    return kFront + padded(out) + 8 * (padded(in) - in) + 2 * kTapsPad;
  }

  // The input whose window has lane l of vector r.
  static int64_t input_of(int scale, int64_t vector, int r, int l) {
    const int each = kLanes / (2 * scale);
    return vector * kLanes + r / 2 * 2 * each + r % 2 + l / (2 * scale) * 2;
  }

  ColumnGather(const Windows<A>& w, const LinearAxis& axis)
      : windows(w),
        scale(tree_scale(axis)),
        memory(scale ? (w.in + kLanes - 1) / kLanes * 2 * scale * kLanes * static_cast<int64_t>(sizeof(A)) : 0) {
    weights = reinterpret_cast<A*>(memory.data);
    for (int64_t v = 0; memory.data && scale && v < vectors(); ++v)
      for (int r = 0; r < 2 * scale; ++r)
        for (int l = 0; l < kLanes; ++l) {
          const int64_t j = input_of(scale, v, r, l), i = scale * j - scale / 2 + l % (2 * scale);
          const bool inside = j < windows.in && i >= 0 && i < windows.out;
          weights[(v * 2 * scale + r) * kLanes + l] = inside ? windows.weight(j, i) : A(0);
        }
  }
  bool ok() const { return memory.data != nullptr; }

  template <int kCount>
  SEGOPS_INLINE void pair_sums(V (&v)[kCount], int count) {
    Vec<BitsOf<A>, kLanes> even, odd;
    for (int l = 0; l < kLanes; ++l) {
      even[l] = 2 * l;
      odd[l] = 2 * l + 1;
    }
    for (int k = 0; k < count / 2; ++k)
      v[k] = __builtin_shuffle(v[2 * k], v[2 * k + 1], even) + __builtin_shuffle(v[2 * k], v[2 * k + 1], odd);
  }

  template <int kScale>
  void tree(A* grad, const A* sums) const {
    constexpr int kVectors = 2 * kScale, kEach = kLanes / kVectors;
    Vec<BitsOf<A>, kLanes> order;
    for (int l = 0; l < kLanes; ++l) order[l] = (l / (2 * kEach) * 2 + l % 2) * kEach + l % (2 * kEach) / 2;
    for (int64_t v = 0; v < vectors(); ++v) {
      const A* const own = weights + v * kVectors * kLanes;
      V part[kVectors];
#pragma GCC unroll 16
      for (int r = 0; r < kVectors; ++r)
        part[r] =
            load<kLanes, A>(own + r * kLanes) * load<kLanes, A>(sums + kScale * input_of(kScale, v, r, 0) - kScale / 2);
#pragma GCC unroll 4
      for (int count = kVectors; count > 1; count /= 2) pair_sums(part, count);
      store<kLanes>(grad + v * kLanes, __builtin_shuffle(part[0], order));
    }
    // These have the weight zero in the second input: NaN and infinity reach it.
    for (int64_t i = 0; windows.in > 1 && i < kScale / 2; ++i) grad[1] += 0 * sums[i];
  }

  // grad: with room up to padded(in).
  void run(A* grad, const A* sums) const {
    if constexpr (kLanes >= 4)
      if (scale == 2) return tree<2>(grad, sums);
    if constexpr (kLanes >= 8)
      if (scale == 4) return tree<4>(grad, sums);
    if constexpr (kLanes >= 16)
      if (scale == 8) return tree<8>(grad, sums);
    for (int64_t j = 0; j < windows.in; ++j) {
      A sum = 0;
      for (int64_t i = windows.begin(j); i < windows.end(j); ++i) sum += windows.weight(j, i) * sums[i];
      grad[j] = sum;
    }
  }
};

template <class T>
struct Backward {
  using A = typename AccumulatorOf<T>::type;

  const UpsampleBilinearBackward& p;
  const Windows<A>&vertical, &horizontal;
  const ColumnGather<A>& columns;
  int64_t ahead;  // rows

  static int64_t sum_elements(const UpsampleBilinearBackward& p) {
    return padded(ColumnGather<A>::row_elements(p.grad_input.width, p.grad_output.width));
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
