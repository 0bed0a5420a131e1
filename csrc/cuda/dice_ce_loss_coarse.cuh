// What forward and backward share for coarse logits: the window of coarse cells that a block reads, and how a row of fine
// pixels is interpolated from it.
#pragma once
#include "bilinear.cuh"
#include "dice_ce_loss_gradient.cuh"
#include "dice_ce_loss_sweep.cuh"
#include "segops/dice_ce_loss_coarse.h"

namespace segops::cuda::dice_ce {

constexpr int kCoarseThreads = 256;
constexpr int kMostWindow = 72 * 1024;

// Neighbouring coarse cells.
struct Cells {
  int row, column, rows, columns;

  // Those that the fine pixels of a rectangle read.
  SEGOPS_HOST_DEVICE static Cells read_by(const CoarseLogits& of, int64_t top, int64_t rows, int64_t left, int64_t columns) {
    const LinearTap first = linear_tap(of.vertical, top), last = linear_tap(of.vertical, top + rows - 1);
    const LinearTap begin = linear_tap(of.horizontal, left), end = linear_tap(of.horizontal, left + columns - 1);
    return {static_cast<int>(first.low), static_cast<int>(begin.low), static_cast<int>(last.high - first.low) + 1,
            static_cast<int>(end.high - begin.low) + 1};
  }
};

// Elements between the classes of a window in shared memory: an odd number of words, so that a warp that writes the classes
// of a cell finds them in different banks.
SEGOPS_HOST_DEVICE inline int pitch_of(int64_t cells, int64_t element) {
  const int64_t of_word = element < 4 ? 4 / element : 1;
  return static_cast<int>(((cells + of_word - 1) / of_word | 1) * of_word);
}

inline int64_t element_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

template <bool kStaged>
struct WindowOffset {
  using type = int;
};
template <>
struct WindowOffset<false> {
  using type = int64_t;
};

// The coarse logits of an image where a block reads them: a copy of its cells in shared memory, or, where they are too many,
// the tensor itself.
template <class T, bool kStaged>
struct CoarseWindow {
  using A = AccumulatorOf<T>;
  using Offset = typename WindowOffset<kStaged>::type;
  const T* data;
  int row, column;  // the cell at `data`
  Offset stride_c, stride_h, stride_w;

  // A barrier must follow.
  __device__ CoarseWindow(const ConstPlanes& planes, int64_t image, const Cells& cells, T* shared) {
    const T* const from = static_cast<const T*>(planes.data) + image * planes.stride_n;
    if constexpr (!kStaged) {
      data = from;
      row = column = 0;
      stride_c = planes.stride_c;
      stride_h = planes.stride_h;
      stride_w = planes.stride_w;
      return;
    }
    const int count = cells.rows * cells.columns, classes = static_cast<int>(planes.channels);
    const int threads = static_cast<int>(blockDim.x);
    data = shared;
    row = cells.row;
    column = cells.column;
    stride_c = pitch_of(count, sizeof(T));
    stride_h = cells.columns;
    stride_w = 1;
    // Along memory: the cells of a row side by side, or the classes of a cell.
    const bool planar = planes.stride_w == 1;
    for (int i = static_cast<int>(threadIdx.x); i < count * classes; i += threads) {
      const int c = planar ? i / count : i % classes, cell = planar ? i % count : i / classes;
      const int y = cell / cells.columns, x = cell % cells.columns;
      shared[c * static_cast<int>(stride_c) + cell] =
          device::load(from + c * planes.stride_c + (row + y) * planes.stride_h + (column + x) * planes.stride_w);
    }
  }

  __device__ __forceinline__ Offset offset(int y, int x) const { return (y - row) * stride_h + (x - column) * stride_w; }
  __device__ __forceinline__ A at(int c, Offset cell) const {
    const T* const element = data + c * stride_c + cell;
    if constexpr (kStaged)
      return widen<A>(*element);
    else
      return widen<A>(device::load(element));
  }
};

// A fine column between two coarse columns.
template <class T, bool kStaged>
struct FineColumn {
  using A = AccumulatorOf<T>;
  int low, high;
  A weight;

  __device__ __forceinline__ A read(const CoarseWindow<T, kStaged>& window, int c, int row) const {
    return blend(window.at(c, window.offset(row, low)), window.at(c, window.offset(row, high)), weight);
  }
};

// Walks down the fine rows of one column and class: the two coarse rows around it are read once.
template <class T, bool kStaged>
struct FineRows {
  using A = AccumulatorOf<T>;
  A upper = 0, lower = 0;
  int held = -2;

  __device__ __forceinline__ A at(const CoarseWindow<T, kStaged>& window, const FineColumn<T, kStaged>& column, int c,
                                  int low, int last, A weight) {
    if (low != held) {
      upper = low == held + 1 ? lower : column.read(window, c, low);
      lower = column.read(window, c, low < last ? low + 1 : last);
      held = low;
    }
    return blend(upper, lower, weight);
  }
};

// One fine pixel's label and weight; kIgnored where ignored or bad, which `bad` is told.
template <class A>
struct FinePixel {
  int32_t label = kIgnored;
  A weight = 0;

  __device__ __forceinline__ FinePixel() {}
  __device__ __forceinline__ FinePixel(const DiceCeLossInputs& in, int64_t position, BadData& bad) {
    const int64_t value = label_at(in, position);
    if (value == in.ignore_index) return;
    if (value < 0 || value >= in.classes) {
      bad = merge(bad, BadData{1, position, value});
      return;
    }
    label = static_cast<int32_t>(value);
    weight = in.pixel_weight ? device::load(static_cast<const A*>(in.pixel_weight) + position) : A(1);
  }
};

}  // namespace segops::cuda::dice_ce
