// A tile of dice_ce_loss with coarse logits: target rows that lie between the same two rows of logits, one after the other
// in a block. What they share is done once: from one row to the next a logit moves by the same amount, so that its
// exponential is multiplied by the same number, and their gradients are summed before they go to the sums of the two rows.
#pragma once
#include "dice_ce_loss_block.h"
#include "segops/interpolate.h"

namespace segops::SEGOPS_ISA {

constexpr int64_t kTileRows = 4;  // at most: each multiplication rounds, and the block has to stay in the first-level cache

struct TileSize {
  int64_t rows, width;

  TileSize(int64_t classes, int64_t columns, int64_t bytes) {
    rows = 28672 / (classes * bytes * kPad);
    rows = rows < 1 ? 1 : rows > kTileRows ? kTileRows : rows;
    width = block_pixels((rows > 1 ? rows : 2) * classes, columns, bytes);
  }
  int64_t pixels() const { return rows * width; }
};

// How many target rows from y on are between the same two rows of logits, at most `most` of them and before `end`.
static int64_t rows_together(const LinearAxis& vertical, int64_t y, int64_t end, int64_t most) {
  const int64_t low = linear_tap(vertical, y).low;
  int64_t count = 1;
  while (count < most && y + count < end && linear_tap(vertical, y + count).low == low) ++count;
  return count;
}

// The logits of one target row between two rows that are interpolated to its columns.
template <class T>
struct BetweenRow {
  static constexpr bool kSeveralRows = false;
  const T *lower, *upper;  // [C, stride]
  int64_t stride;
  T keep, share;

  template <int kLanes, class>
  SEGOPS_MEMBER Vec<T, kLanes> at(int64_t c, int64_t i) const {
    return keep * load<kLanes, T>(lower + c * stride + i) + share * load<kLanes, T>(upper + c * stride + i);
  }
  BetweenRow ahead(int64_t, int64_t, int64_t) const { return *this; }
  SEGOPS_MEMBER void prefetch(int, int64_t&, int64_t) const {}
};

// Those of a tile: row k is at pixels [k * width, (k + 1) * width).
template <class T>
struct Between {
  static constexpr bool kSeveralRows = true;
  const T *lower, *upper;
  int64_t stride, width, rows;
  T keep[kTileRows], share[kTileRows];
  T step;     // of the weights, if they are evenly spaced
  bool even;  // they are (not where coordinates are cut off at the border), and there are enough of them to gain by it

  Between(const T* low, const T* high, int64_t pitch, int64_t columns, const LinearAxis& vertical, int64_t y, int64_t count)
      : lower(low), upper(high), stride(pitch), width(columns), rows(count) {
    double weight[kTileRows];
    for (int64_t k = 0; k < rows; ++k) {
      weight[k] = linear_tap(vertical, y + k).weight;
      keep[k] = static_cast<T>(1. - weight[k]);
      share[k] = static_cast<T>(weight[k]);
    }
    const double distance = rows > 1 ? weight[1] - weight[0] : 0.;
    step = static_cast<T>(distance);
    even = rows > 2;
    for (int64_t k = 2; k < rows; ++k) {
      const double off = weight[k] - weight[k - 1] - distance;
      even &= off < 1e-9 && off > -1e-9;
    }
  }

  BetweenRow<T> row(int64_t k) const { return BetweenRow<T>{lower, upper, stride, keep[k], share[k]}; }

  template <int kLanes, class>
  SEGOPS_MEMBER Vec<T, kLanes> at(int64_t c, int64_t i) const {
    const int64_t k = static_cast<uint32_t>(i) / static_cast<uint32_t>(width);
    return row(k).template at<kLanes, T>(c, i - k * width);
  }
};

// exp_rows of a tile whose weights are evenly spaced: two exponentials a logit, however many rows. The range of the first
// and of the last row is that of all.
template <int kClasses, class T>
SEGOPS_INLINE void exp_even_rows(Block<T>& b, const Between<T>& x, int64_t c, Vec<BitsOf<T>, kNativeLanes<T>>& range) {
  constexpr int kLanes = kNativeLanes<T>;
  using V = Vec<T, kLanes>;
  // Copies, as what is stored might be the block itself for all the compiler knows.
  const Block<T> own = b;
  const int64_t width = x.width, rows = x.rows;
  const T keep = x.keep[0], share = x.share[0], step = x.step, way = step * static_cast<T>(rows - 1);
  T* const exp = own.exp + c * own.capacity;
  for (int64_t i = 0; i < width; i += kLanes) {
    V v[2 * kClasses], last[kClasses];  // e^x of the first row, and what it is multiplied by from row to row
    for (int r = 0; r < kClasses; ++r) {
      const V low = load<kLanes, T>(x.lower + (c + r) * x.stride + i),
              high = load<kLanes, T>(x.upper + (c + r) * x.stride + i);
      const V difference = high - low;
      v[r] = keep * low + share * high;
      v[kClasses + r] = step * difference;
      last[r] = v[r] + way * difference;
    }
    bound_exponents<T, kLanes, kClasses>(last, range);
    exp_tile<T, kLanes, 2 * kClasses, true>(v, range);
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t at = k * width + i;
      V total = c == 0 ? V{} : load<kLanes, T>(own.sum + at);
      for (int r = 0; r < kClasses; ++r) {
        store<kLanes>(exp + r * own.capacity + at, v[r]);
        total += v[r];
        v[r] *= v[kClasses + r];
      }
      store<kLanes>(own.sum + at, total);
    }
  }
}

// exp_block of a tile.
template <bool kStable, class T>
bool exp_several_rows(Block<T>& b, const Between<T>& x) {
  if (!kStable && x.even) {
    Vec<BitsOf<T>, kNativeLanes<T>> range{};
    int64_t c = 0;
    for (; c + 4 <= b.classes; c += 4) exp_even_rows<4>(b, x, c, range);
    for (; c < b.classes; ++c) exp_even_rows<1>(b, x, c, range);
    return !outside_bounds<T, kNativeLanes<T>>(range);
  }
  bool inside = true;
  for (int64_t k = 0; k < x.rows && inside; ++k) {
    Block<T> part = b.part(k * x.width, x.width);
    inside = exp_block<T, kStable>(part, x.row(k));
  }
  return inside;
}

// The transpose of Between: what a tile's gradient adds to the sums of the lower and of the upper row.
template <class T>
struct ToSums {
  static constexpr bool kSeveralRows = true;
  T *lower, *upper;  // [C, stride]
  int64_t stride;
  const Between<T>& x;

  // Adds the gradient of classes c to c + kRows, which at(i, v) tells of pixel i and those beside it.
  template <int kRows, int kLanes, class V, class At>
  SEGOPS_MEMBER void sum(int64_t c, const At& at) const {
    const int64_t width = x.width, rows = x.rows;
    const bool last = x.lower == x.upper;  // there is no upper row
    for (int64_t i = 0; i < width; i += kLanes) {
      V low[kRows], high[kRows];
      for (int r = 0; r < kRows; ++r) {
        low[r] = load<kLanes, T>(lower + (c + r) * stride + i);
        high[r] = load<kLanes, T>(upper + (c + r) * stride + i);
      }
      for (int64_t k = 0; k < rows; ++k) {
        V v[kRows];
        at(k * width + i, v);
        const T keep = last ? T(1) : x.keep[k], share = last ? T(0) : x.share[k];
        for (int r = 0; r < kRows; ++r) {
          low[r] += keep * v[r];
          high[r] += share * v[r];
        }
      }
      for (int r = 0; r < kRows; ++r) {
        store<kLanes>(lower + (c + r) * stride + i, low[r]);
        store<kLanes>(upper + (c + r) * stride + i, high[r]);
      }
    }
  }
};

}  // namespace segops::SEGOPS_ISA
