// A tile of dice_ce_loss with coarse logits: target rows that lie between the same two rows of logits, one after the other
// in a block. What they share is done once: from one row to the next a logit moves by the same amount, so that its
// exponential is multiplied by the same number, and their gradients are summed before they go to the sums of the two rows.
#pragma once
#include "coarse_rows.h"
#include "dice_ce_loss_block.h"

namespace segops::SEGOPS_ISA {

struct TileSize {
  int64_t rows, width;

  TileSize(int64_t classes, int64_t columns, int64_t bytes) {
    rows = 28672 / (classes * bytes * kPad);
    rows = rows < 1 ? 1 : rows > kTileRows ? kTileRows : rows;
    width = block_pixels((rows > 1 ? rows : 2) * classes, columns, bytes);
  }
  int64_t pixels() const { return rows * width; }
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

}  // namespace segops::SEGOPS_ISA
