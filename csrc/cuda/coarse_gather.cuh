// Backward of a bilinear interpolation whose fine gradient is never in memory: gathered into the coarse cells that a block
// owns, from the fine pixels that read them, those beyond its border too.
//
// The fine pixels come in pieces. Gradients are summed down the columns first, a thread a channel and fine column; then
// those sums along the rows, a thread a channel and cell. Every sum has one order: rows first, then columns, then pieces.
#pragma once
#include "coarse_window.cuh"

namespace segops::cuda {

// Fine elements that read `extent` neighbouring cells, of any of the blocks along one axis.
inline int64_t most_fine(const LinearAxis& axis, int64_t extent) {
  int64_t most = 1;
  for (int64_t begin = 0; begin < axis.in; begin += extent) {
    const int64_t fine = first_output(axis, begin + extent) - first_output(axis, begin - 1);
    most = fine > most ? fine : most;
  }
  return most;
}

// The cells of a block, and the fine pixels that read them.
struct CellBlock {
  int top, left, rows, columns, last_row, last_column;
  int fine_top, fine_bottom, fine_left, fine_right;

  __device__ __forceinline__ CellBlock(const LinearAxis& vertical, const LinearAxis& horizontal, int top_, int left_,
                                       int most_rows, int most_columns)
      : top(top_),
        left(left_),
        last_row(static_cast<int>(vertical.in) - 1),
        last_column(static_cast<int>(horizontal.in) - 1) {
    rows = last_row + 1 - top < most_rows ? last_row + 1 - top : most_rows;
    columns = last_column + 1 - left < most_columns ? last_column + 1 - left : most_columns;
    fine_top = static_cast<int>(first_output(vertical, top - 1));
    fine_bottom = static_cast<int>(first_output(vertical, top + rows));
    fine_left = static_cast<int>(first_output(horizontal, left - 1));
    fine_right = static_cast<int>(first_output(horizontal, left + columns));
  }

  // What those pixels read.
  __device__ __forceinline__ Cells cells() const {
    const int row_before = top > 0 ? top - 1 : 0, column_before = left > 0 ? left - 1 : 0;
    const int row_after = top + rows < last_row ? top + rows : last_row;
    const int column_after = left + columns < last_column ? left + columns : last_column;
    return {row_before, column_before, row_after - row_before + 1, column_after - column_before + 1};
  }
};

// Offsets into shared memory of what the gather needs.
struct GatherShared {
  int row_low, row_weight, column_weight, firsts, sums, totals;

  // a: bytes of a sum; group: channels that are summed at once, of `channels`.
  void take(Parts& parts, int64_t a, int64_t rows, int64_t columns, int64_t piece_rows, int64_t piece_columns, int64_t group,
            int64_t channels) {
    row_low = parts.take(piece_rows * 4);
    row_weight = parts.take(piece_rows * a);
    column_weight = parts.take(piece_columns * a);
    firsts = parts.take((columns + 2) * 4);
    sums = parts.take(group * rows * piece_columns * a);
    totals = parts.take(channels * rows * columns * a);
  }
};

template <class T, bool kStaged>
__device__ __forceinline__ FineColumn<T, kStaged> fine_column(const LinearAxis& horizontal, int x) {
  const LinearTap tap = linear_tap(horizontal, x);
  return {static_cast<int>(tap.low), static_cast<int>(tap.high), static_cast<AccumulatorOf<T>>(tap.weight)};
}

template <class T, bool kStaged>
struct Gather {
  using A = AccumulatorOf<T>;
  const CellBlock& block;
  const CoarseWindow<T, kStaged>& window;
  const LinearAxis &vertical, &horizontal;
  int* row_low;  // of the piece's rows
  A *row_weight, *column_weight;
  int* firsts;  // fine column that first reads column j - 1 of the block, and those to its right
  A *sums, *totals;
  int top = 0, left = 0, height = 0, span = 0;  // of the piece

  __device__ __forceinline__ Gather(const CellBlock& block_, const CoarseWindow<T, kStaged>& window_,
                                    const LinearAxis& vertical_, const LinearAxis& horizontal_, unsigned char* shared,
                                    const GatherShared& at)
      : block(block_),
        window(window_),
        vertical(vertical_),
        horizontal(horizontal_),
        row_low(reinterpret_cast<int*>(shared + at.row_low)),
        row_weight(reinterpret_cast<A*>(shared + at.row_weight)),
        column_weight(reinterpret_cast<A*>(shared + at.column_weight)),
        firsts(reinterpret_cast<int*>(shared + at.firsts)),
        sums(reinterpret_cast<A*>(shared + at.sums)),
        totals(reinterpret_cast<A*>(shared + at.totals)) {}

  // A barrier must follow.
  __device__ __forceinline__ void begin(int channels) const {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < channels * block.rows * block.columns; i += kCoarseThreads) totals[i] = 0;
    for (int j = thread; j < block.columns + 2; j += kCoarseThreads)
      firsts[j] = static_cast<int>(first_output(horizontal, static_cast<int64_t>(block.left) - 1 + j));
  }

  // The next piece; barriers must precede and follow.
  __device__ __forceinline__ void move_to(int top_, int left_, int most_rows, int most_columns) {
    const int thread = static_cast<int>(threadIdx.x);
    top = top_;
    left = left_;
    height = block.fine_bottom - top < most_rows ? block.fine_bottom - top : most_rows;
    span = block.fine_right - left < most_columns ? block.fine_right - left : most_columns;
    for (int i = thread; i < height; i += kCoarseThreads) {
      const LinearTap tap = linear_tap(vertical, top + i);
      row_low[i] = static_cast<int>(tap.low);
      row_weight[i] = static_cast<A>(tap.weight);
    }
    for (int i = thread; i < span; i += kCoarseThreads)
      column_weight[i] = static_cast<A>(linear_tap(horizontal, left + i).weight);
  }

  // The sums of channel `slot` of the group, `channel` of the window, down column x of the piece, into each of the block's
  // rows that the piece reads. fetch(y) loads what kAhead rows need; gradient(what it returned, i, y + i, logit).
  template <int kAhead, class Fetch, class Gradient>
  __device__ __forceinline__ void sum_down(int slot, int channel, int x, int most_rows, const Fetch& fetch,
                                           const Gradient& gradient) const {
    const FineColumn<T, kStaged> column = fine_column<T, kStaged>(horizontal, left + x);
    A* const own = sums + slot * most_rows * span + x;
    const auto put = [&](int row, A sum) {
      if (row >= block.top && row < block.top + block.rows) own[(row - block.top) * span] = sum;
    };
    FineRows<T, kStaged> fine;
    A sum = 0, next = 0;
    int low = row_low[0];
    for (int y = 0; y < height; y += kAhead) {
      const auto fetched = fetch(y);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (y + i >= height) break;
        while (low < row_low[y + i]) {
          put(low++, sum);
          sum = next;
          next = 0;
        }
        const A weight = row_weight[y + i], logit = fine.at(window, column, channel, low, block.last_row, weight);
        const A g = gradient(fetched, i, y + i, logit);
        sum += (low == block.last_row ? A(1) : A(1) - weight) * g;
        next += weight * g;
      }
    }
    put(low, sum);
    put(low + 1, next);
  }

  // Adds those sums along the rows of the group's channels, from `first` of the block on. Barriers must precede and follow.
  __device__ __forceinline__ void sum_along(int first, int group, int most_rows) const {
    const int rows = block.rows, columns = block.columns;
    const int first_row = row_low[0], beyond = row_low[height - 1] + 2;  // of the cells that the piece reads
    for (int i = static_cast<int>(threadIdx.x); i < group * rows * columns; i += kCoarseThreads) {
      const int j = i % columns, r = i / columns % rows;
      if (block.top + r < first_row || block.top + r >= beyond) continue;
      const A* const from = sums + (i / (columns * rows) * most_rows + r) * span;
      const auto inside = [&](int x) { return x < left ? 0 : x > left + span ? span : x - left; };
      const int begin = inside(firsts[j]), middle = inside(firsts[j + 1]), end = inside(firsts[j + 2]);
      const bool is_last = block.left + j == block.last_column;
      A total = 0;
      for (int x = begin; x < middle; ++x) total += column_weight[x] * from[x];
      for (int x = middle; x < end; ++x) total += (is_last ? A(1) : A(1) - column_weight[x]) * from[x];
      totals[first * rows * columns + i] += total;
    }
  }

  // Writes the gradient of the block's channels, along memory: the cells of a row side by side, or the channels of a cell.
  __device__ __forceinline__ void store(const Planes& grad, int64_t image, int first_channel, int channels) const {
    const bool planar = grad.stride_w == 1;
    const int count = block.rows * block.columns;
    T* const to = static_cast<T*>(grad.data) + image * grad.stride_n + first_channel * grad.stride_c +
                  block.top * grad.stride_h + block.left * grad.stride_w;
    for (int i = static_cast<int>(threadIdx.x); i < channels * count; i += kCoarseThreads) {
      const int c = planar ? i / count : i % channels, cell = planar ? i % count : i / channels;
      to[c * grad.stride_c + cell / block.columns * grad.stride_h + cell % block.columns * grad.stride_w] =
          narrow<T>(totals[c * count + cell]);
    }
  }
};

}  // namespace segops::cuda
