// Pixels that kernels cannot read by whole rows of one class, copied such that they can.
#pragma once
#include "vec.h"

namespace segops::SEGOPS_ISA {

// Copies [size, C] (channels last) or the ragged end of planes into rows of one class each, [C, capacity], converted and
// padded with zeros.
template <class T, class In>
void stage_rows(const In* src, int64_t stride_c, int64_t stride_s, int64_t classes, int64_t size, int64_t padded, T* rows,
                int64_t capacity) {
  constexpr int kLanes = kNativeLanes<T>;
  int64_t i = 0;
  if (stride_c == 1) {
    for (; i + 4 <= size; i += 4) {
      for (int64_t c = 0; c < classes; c += 4) {
        if (c + 4 > classes) {
          if (classes < 4) break;
          c = classes - 4;  // the last four overlap their neighbours
        }
        Vec<T, 4> p[4];
        for (int k = 0; k < 4; ++k) p[k] = load<4, T>(src + (i + k) * stride_s + c);
        using Order = Vec<BitsOf<T>, 4>;
        const Vec<T, 4> ab_low = __builtin_shuffle(p[0], p[1], Order{0, 4, 1, 5});
        const Vec<T, 4> ab_high = __builtin_shuffle(p[0], p[1], Order{2, 6, 3, 7});
        const Vec<T, 4> cd_low = __builtin_shuffle(p[2], p[3], Order{0, 4, 1, 5});
        const Vec<T, 4> cd_high = __builtin_shuffle(p[2], p[3], Order{2, 6, 3, 7});
        T* dst = rows + c * capacity + i;
        store<4>(dst, __builtin_shuffle(ab_low, cd_low, Order{0, 1, 4, 5}));
        store<4>(dst + capacity, __builtin_shuffle(ab_low, cd_low, Order{2, 3, 6, 7}));
        store<4>(dst + 2 * capacity, __builtin_shuffle(ab_high, cd_high, Order{0, 1, 4, 5}));
        store<4>(dst + 3 * capacity, __builtin_shuffle(ab_high, cd_high, Order{2, 3, 6, 7}));
      }
      for (int64_t c = 0; classes < 4 && c < classes; ++c)
        for (int k = 0; k < 4; ++k) rows[c * capacity + i + k] = load<1, T>(src + (i + k) * stride_s + c)[0];
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
    T* row = rows + c * capacity;
    int64_t j = i;
    if (stride_s == 1 && size >= kLanes) {
      for (; j + kLanes <= size; j += kLanes) store<kLanes>(row + j, load<kLanes, T>(src + c * stride_c + j));
      j = size - kLanes;  // the last ones overlap their neighbours
      store<kLanes>(row + j, load<kLanes, T>(src + c * stride_c + j));
      j = size;
    }
    for (; j < size; ++j) row[j] = load<1, T>(src + c * stride_c + j * stride_s)[0];
    for (j = size; j < padded; ++j) row[j] = T(0);
  }
}

// The way back: rows to [size, C] or to a ragged planar block.
template <class T, class In>
void unstage_rows(const T* rows, int64_t capacity, int64_t classes, int64_t size, In* dst, int64_t stride_c,
                  int64_t stride_s) {
  constexpr int kLanes = kNativeLanes<T>;
  int64_t i = 0;
  if (stride_c == 1 && classes >= 4) {
    for (; i + 4 <= size; i += 4) {
      for (int64_t c = 0; c < classes; c += 4) {
        if (c + 4 > classes) c = classes - 4;
        const T* src = rows + c * capacity + i;
        Vec<T, 4> r[4];
        for (int k = 0; k < 4; ++k) r[k] = load<4, T>(src + k * capacity);
        using Order = Vec<BitsOf<T>, 4>;
        const Vec<T, 4> ab_low = __builtin_shuffle(r[0], r[1], Order{0, 4, 1, 5});
        const Vec<T, 4> ab_high = __builtin_shuffle(r[0], r[1], Order{2, 6, 3, 7});
        const Vec<T, 4> cd_low = __builtin_shuffle(r[2], r[3], Order{0, 4, 1, 5});
        const Vec<T, 4> cd_high = __builtin_shuffle(r[2], r[3], Order{2, 6, 3, 7});
        In* pixel = dst + i * stride_s + c;
        store<4>(pixel, __builtin_shuffle(ab_low, cd_low, Order{0, 1, 4, 5}));
        store<4>(pixel + stride_s, __builtin_shuffle(ab_low, cd_low, Order{2, 3, 6, 7}));
        store<4>(pixel + 2 * stride_s, __builtin_shuffle(ab_high, cd_high, Order{0, 1, 4, 5}));
        store<4>(pixel + 3 * stride_s, __builtin_shuffle(ab_high, cd_high, Order{2, 3, 6, 7}));
      }
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
    const T* row = rows + c * capacity;
    int64_t j = i;
    if (stride_s == 1)
      for (; j + kLanes <= size; j += kLanes) store<kLanes>(dst + c * stride_c + j, load<kLanes, T>(row + j));
    for (; j < size; ++j) store<1>(dst + c * stride_c + j * stride_s, Vec<T, 1>{row[j]});
  }
}

}  // namespace segops::SEGOPS_ISA
