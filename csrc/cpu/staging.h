// Pixels that kernels cannot read by whole rows of one class, copied such that they can.
#pragma once
#include "vec.h"

namespace segops::SEGOPS_ISA {

constexpr int kQuad = 4;  // classes side by side

// Four vectors of quads, turned: lane 4 q + k of the j-th is lane 4 q + j of the k-th. Twice gives the same again.
template <class T, int kLanes>
SEGOPS_INLINE void turn_quads(Vec<T, kLanes> (&v)[kQuad]) {
  using Order = Vec<BitsOf<T>, kLanes>;
  Order low, high, first, second;
  for (int i = 0; i < kLanes; ++i) {
    const int quad = i / kQuad * kQuad, k = i % kQuad;
    low[i] = quad + k / 2 + k % 2 * kLanes;
    high[i] = low[i] + 2;
    first[i] = quad + k % 2 + k / 2 * kLanes;
    second[i] = first[i] + 2;
  }
  const Vec<T, kLanes> ab_low = __builtin_shuffle(v[0], v[1], low), ab_high = __builtin_shuffle(v[0], v[1], high);
  const Vec<T, kLanes> cd_low = __builtin_shuffle(v[2], v[3], low), cd_high = __builtin_shuffle(v[2], v[3], high);
  v[0] = __builtin_shuffle(ab_low, cd_low, first);
  v[1] = __builtin_shuffle(ab_low, cd_low, second);
  v[2] = __builtin_shuffle(ab_high, cd_high, first);
  v[3] = __builtin_shuffle(ab_high, cd_high, second);
}

// A vector of quads, `stride` apart in memory.
template <int kLanes, class T, class In>
SEGOPS_INLINE Vec<T, kLanes> load_quads(const In* p, int64_t stride) {
  if constexpr (kLanes == kQuad) {
    return load<kQuad, T>(p);
  } else {
    const auto low = load_quads<kLanes / 2, T>(p, stride), high = load_quads<kLanes / 2, T>(p + kLanes / 8 * stride, stride);
    if constexpr (kLanes == 8)
      return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    else
      return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
}

template <int kLanes, class T, class In>
SEGOPS_INLINE void store_quads(In* p, int64_t stride, Vec<T, kLanes> v) {
  Vec<T, kQuad> quads[kLanes / kQuad];
  __builtin_memcpy(quads, &v, sizeof(v));
  for (int q = 0; q < kLanes / kQuad; ++q) store<kQuad>(p + q * stride, quads[q]);
}

// Calls body(c) for quads of classes; the last one overlaps its neighbour.
template <class Body>
SEGOPS_INLINE void for_each_quad(int64_t classes, const Body& body) {
  for (int64_t c = 0; c < classes; c += kQuad) body(c < classes - kQuad ? c : classes - kQuad);
}

// kLanes pixels of all classes, at least a quad, to rows of one class each, and back.
template <int kLanes, class T, class In>
SEGOPS_INLINE void stage_pixels(const In* src, int64_t stride, int64_t classes, T* rows, int64_t capacity) {
  const int64_t bytes = kLanes * classes * static_cast<int64_t>(sizeof(In));
  for (int64_t at = 0; at < bytes; at += 64) fetch_ahead(reinterpret_cast<const char*>(src) + at);
  for_each_quad(classes, [&](int64_t c) __attribute__((always_inline)) {
    Vec<T, kLanes> v[kQuad];
    for (int k = 0; k < kQuad; ++k) v[k] = load_quads<kLanes, T>(src + k * stride + c, kQuad * stride);
    turn_quads<T, kLanes>(v);
    for (int k = 0; k < kQuad; ++k) store<kLanes>(rows + (c + k) * capacity, v[k]);
  });
}
template <int kLanes, class T, class In>
SEGOPS_INLINE void unstage_pixels(const T* rows, int64_t capacity, int64_t classes, In* dst, int64_t stride) {
  for_each_quad(classes, [&](int64_t c) __attribute__((always_inline)) {
    Vec<T, kLanes> v[kQuad];
    for (int k = 0; k < kQuad; ++k) v[k] = load<kLanes, T>(rows + (c + k) * capacity);
    turn_quads<T, kLanes>(v);
    for (int k = 0; k < kQuad; ++k) store_quads<kLanes, T>(dst + k * stride + c, kQuad * stride, v[k]);
  });
}

// Copies [size, C] (channels last) or the ragged end of planes into rows of one class each, [C, capacity], converted and
// padded with zeros.
template <class T, class In>
void stage_rows(const In* src, int64_t stride_c, int64_t stride_s, int64_t classes, int64_t size, int64_t padded, T* rows,
                int64_t capacity) {
  constexpr int kLanes = kNativeLanes<T> < kQuad ? kQuad : kNativeLanes<T>;
  int64_t i = 0;
  if (stride_c == 1 && classes >= kQuad) {
    for (; i + kLanes <= size; i += kLanes) stage_pixels<kLanes>(src + i * stride_s, stride_s, classes, rows + i, capacity);
    for (; i + kQuad <= size; i += kQuad) stage_pixels<kQuad>(src + i * stride_s, stride_s, classes, rows + i, capacity);
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
  constexpr int kLanes = kNativeLanes<T> < kQuad ? kQuad : kNativeLanes<T>;
  int64_t i = 0;
  if (stride_c == 1 && classes >= kQuad) {
    for (; i + kLanes <= size; i += kLanes)
      unstage_pixels<kLanes>(rows + i, capacity, classes, dst + i * stride_s, stride_s);
    for (; i + kQuad <= size; i += kQuad) unstage_pixels<kQuad>(rows + i, capacity, classes, dst + i * stride_s, stride_s);
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
