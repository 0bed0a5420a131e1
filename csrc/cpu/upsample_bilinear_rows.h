// What forward and backward of upsample_bilinear share: the taps of an axis as tables, rows of elements, and the cut of the
// work into items.
//
// Interpolation is separable. Both layouts are rows of elements side by side in memory (of a plane, or of the channels of
// pixels), so that the vertical half is a sum of rows in either; they differ in the horizontal half.
#pragma once
#include "segops/upsample_bilinear.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};

constexpr int64_t kLine = 64;     // bytes of a cache line
constexpr int64_t kTapsPad = 16;  // tables end with as many repetitions of the last tap: a vector of any kind

inline int64_t padded(int64_t n) { return (n + kTapsPad - 1) / kTapsPad * kTapsPad; }

// linear_tap of every output of an axis. high is low + 1, or low itself if that is the last.
template <class A>
struct Taps {
  int64_t in, out;
  Memory memory;
  int32_t* low;
  A* weight;

  explicit Taps(const LinearAxis& axis)
      : in(axis.in), out(axis.out), memory(padded(out) * static_cast<int64_t>(sizeof(A) + sizeof(int32_t))) {
    if (!memory.data) return;
    weight = reinterpret_cast<A*>(memory.data);
    low = reinterpret_cast<int32_t*>(weight + padded(out));
    for (int64_t i = 0; i < padded(out); ++i) {
      const LinearTap tap = linear_tap(axis, i < out ? i : out - 1);
      low[i] = static_cast<int32_t>(tap.low);
      weight[i] = static_cast<A>(tap.weight);
    }
  }
  bool ok() const { return memory.data != nullptr; }
};

// Calls work(lanes, first) for vectors that cover [0, n): the last one overlaps the one before, and below one vector they
// get shorter. For work that may be done twice.
template <int kLanes>
struct Lanes {
  static constexpr int value = kLanes;
};
template <int kLanes, class Work>
SEGOPS_INLINE void for_vectors(int64_t n, const Work& work) {
  if (n >= kLanes) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) work(Lanes<kLanes>{}, i);
    if (i < n) work(Lanes<kLanes>{}, n - kLanes);
  } else if constexpr (kLanes > 1) {
    for_vectors<kLanes / 2>(n, work);
  }
}

// to[i] = (1 - weight) * low[i] + weight * high[i]. kStream: to begins at a cache line and n is a multiple of a vector.
template <bool kStream, class To, class From, class A>
SEGOPS_INLINE void blend_rows(To* to, const From* low, const From* high, A weight, int64_t n) {
  constexpr int kNative = kNativeLanes<A>;
  const A rest = A(1) - weight;
  if constexpr (kStream) {
    for (int64_t i = 0; i < n; i += kNative)
      store_streaming<kNative, To, A>(to + i, rest * load<kNative, A>(low + i) + weight * load<kNative, A>(high + i));
  } else {
    for_vectors<kNative>(n, [&](auto lanes, int64_t i) {
      constexpr int kLanes = decltype(lanes)::value;
      store<kLanes>(to + i, Vec<A, kLanes>(rest * load<kLanes, A>(low + i) + weight * load<kLanes, A>(high + i)));
    });
  }
}

// Elements `stride` apart to the accumulation type, side by side.
template <class A, class T>
SEGOPS_INLINE void load_row(A* to, const T* from, int64_t stride, int64_t n) {
  if (stride == 1)
    return for_vectors<kNativeLanes<A>>(n, [&](auto lanes, int64_t i) {
      constexpr int kLanes = decltype(lanes)::value;
      store<kLanes>(to + i, load<kLanes, A>(from + i));
    });
  for (int64_t i = 0; i < n; ++i) store<1>(to + i, load<1, A>(from + i * stride));
}

template <class A, class T>
SEGOPS_INLINE void store_row(T* to, int64_t stride, const A* from, int64_t n) {
  if (stride == 1)
    return for_vectors<kNativeLanes<A>>(n, [&](auto lanes, int64_t i) {
      constexpr int kLanes = decltype(lanes)::value;
      store<kLanes>(to + i, load<kLanes, A>(from + i));
    });
  for (int64_t i = 0; i < n; ++i) store<1>(to + i * stride, load<1, A>(from + i));
}

// How many rows ahead memory is asked for: at least so many, and kBytes.
template <class T>
int64_t rows_ahead(int64_t least, int64_t stride) {
  constexpr int64_t kBytes = 8192;
  const int64_t bytes = (stride > 0 ? stride : 1) * static_cast<int64_t>(sizeof(T)), rows = (kBytes + bytes - 1) / bytes;
  return rows > least ? rows : least;
}

template <int64_t kElements, class T>
SEGOPS_INLINE void prefetch(const T* p) {
  for (int64_t at = 0; at < kElements * static_cast<int64_t>(sizeof(T)); at += kLine)
    fetch_ahead(reinterpret_cast<const char*>(p) + at, 0);
}

// The rows of all images (or planes), one image after the other, in items of about the same size.
struct RowItems {
  int64_t images, height, rows, items;
  bool serial;

  // elements: of the work that a row is.
  RowItems(int64_t images_, int64_t height_, int64_t elements) : images(images_), height(height_) {
    constexpr int64_t kLeast = 1 << 15, kMost = 1 << 18, kItems = 128;
    const int64_t row = elements > 0 ? elements : 1, all = images * height * row / kItems;
    const int64_t wanted = (all < kLeast ? kLeast : all > kMost ? kMost : all) / row;
    if (wanted >= height) {
      rows = wanted / height * height;
    } else {
      const int64_t cuts = wanted > 0 ? (height + wanted - 1) / wanted : height;
      rows = (height + cuts - 1) / cuts;
    }
    items = elements > 0 ? (images * height + rows - 1) / rows : 0;
    serial = images * height * row < kLeast;
  }

  // Calls work(image, first row, end, worker) for each piece of an item.
  template <class Work>
  void run(const Parallel& parallel, const Work& work) const {
    for_each_item(parallel, items, serial, [&](int64_t item, int32_t worker) {
      const int64_t all = images * height, last = (item + 1) * rows < all ? (item + 1) * rows : all;
      for (int64_t at = item * rows; at < last;) {
        const int64_t image = at / height, first = at % height;
        const int64_t count = height - first < last - at ? height - first : last - at;
        work(image, first, first + count, worker);
        at += count;
      }
      streaming_done();
    });
  }
};

template <class Data>
bool across_channels(const PlanesOf<Data>& planes) {
  return planes.stride_c == 1 && planes.channels > 1;
}

template <class T, class Data>
SEGOPS_INLINE auto plane_of(const PlanesOf<Data>& of, int64_t plane) {
  return static_cast<T*>(of.data) + plane / of.channels * of.stride_n + plane % of.channels * of.stride_c;
}

}  // namespace segops::SEGOPS_ISA
