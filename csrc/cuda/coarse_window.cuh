// The window of coarse cells that a block reads, and how fine pixels are interpolated from it.
#pragma once
#include "bilinear.cuh"

namespace segops::cuda {

constexpr int kCoarseThreads = 256;

// The block's index, taken apart: its place among `count` that change fastest, and the rest.
struct BlockIndex {
  unsigned rest;

  __device__ __forceinline__ BlockIndex() : rest(blockIdx.x) {}
  __device__ __forceinline__ int next(int count) {
    const unsigned index = rest;
    rest = index / static_cast<unsigned>(count);
    return static_cast<int>(index - rest * static_cast<unsigned>(count));
  }
};

// Neighbouring coarse cells.
struct Cells {
  int row, column, rows, columns;

  // Those that the fine pixels of a rectangle read.
  SEGOPS_HOST_DEVICE static Cells read_by(const LinearAxis& vertical, const LinearAxis& horizontal, int64_t top,
                                          int64_t rows, int64_t left, int64_t columns) {
    const LinearTap first = linear_tap(vertical, top), last = linear_tap(vertical, top + rows - 1);
    const LinearTap begin = linear_tap(horizontal, left), end = linear_tap(horizontal, left + columns - 1);
    return {static_cast<int>(first.low), static_cast<int>(begin.low), static_cast<int>(last.high - first.low) + 1,
            static_cast<int>(end.high - begin.low) + 1};
  }
};

// That any of the tiles of so many fine elements reads, along one axis.
inline int64_t most_read(const LinearAxis& axis, int64_t extent) {
  int64_t cells = 1;
  for (int64_t begin = 0; begin < axis.out; begin += extent) {
    const int64_t end = begin + extent < axis.out ? begin + extent : axis.out;
    const int64_t read = linear_tap(axis, end - 1).high - linear_tap(axis, begin).low + 1;
    cells = read > cells ? read : cells;
  }
  return cells;
}

// Elements between the channels of a window in shared memory: an odd number of words, so that a warp that writes the
// channels of a cell finds them in different banks.
SEGOPS_HOST_DEVICE inline int pitch_of(int64_t cells, int64_t element) {
  const int64_t of_word = element < 4 ? 4 / element : 1;
  return static_cast<int>(((cells + of_word - 1) / of_word | 1) * of_word);
}

template <bool kStaged>
struct WindowOffset {
  using type = int;
};
template <>
struct WindowOffset<false> {
  using type = int64_t;
};

// The coarse logits of some channels of an image where a block reads them: a copy of its cells in shared memory, or, where
// they are too many, the tensor itself.
template <class T, bool kStaged>
struct CoarseWindow {
  using A = AccumulatorOf<T>;
  using Offset = typename WindowOffset<kStaged>::type;
  const T* data;
  int row, column;  // the cell at `data`
  Offset stride_c, stride_h, stride_w;

  // A barrier must follow.
  __device__ CoarseWindow(const ConstPlanes& planes, int64_t image, int first_channel, int channels, const Cells& cells,
                          T* shared) {
    const T* const from = static_cast<const T*>(planes.data) + image * planes.stride_n + first_channel * planes.stride_c;
    if constexpr (!kStaged) {
      data = from;
      row = column = 0;
      stride_c = planes.stride_c;
      stride_h = planes.stride_h;
      stride_w = planes.stride_w;
      return;
    }
    const int count = cells.rows * cells.columns, threads = static_cast<int>(blockDim.x);
    data = shared;
    row = cells.row;
    column = cells.column;
    stride_c = pitch_of(count, sizeof(T));
    stride_h = cells.columns;
    stride_w = 1;
    // Along memory: the cells of a row side by side, or the channels of a cell.
    const bool planar = planes.stride_w == 1;
    for (int i = static_cast<int>(threadIdx.x); i < count * channels; i += threads) {
      const int c = planar ? i / count : i % channels, cell = planar ? i % count : i / channels;
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

// Walks down the fine rows of one column and channel: the two coarse rows around it are read once.
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

}  // namespace segops::cuda
