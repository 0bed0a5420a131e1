// Winograd's F(m x m, 3 x 3) on vectors of channels: outputs = A^T [(G weight G^T) * (B^T image B)] A.
//
// Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), with F(4 x 4) interpolated at 0, +-sqrt(1/2),
// +-sqrt(2) and infinity: less than half the rounding error of the usual 0, +-1, +-2.
#pragma once
#include "vec.h"

namespace segops::SEGOPS_ISA {

struct F2 {
  static constexpr int kOut = 2, kIn = 4;

  template <class V>
  static SEGOPS_MEMBER void image(const V (&d)[4], V (&t)[4]) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }
  template <class V>
  static SEGOPS_MEMBER void weight(const V (&g)[3], V (&t)[4]) {
    const V even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
    t[0] = g[0];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = g[2];
  }
  template <class V>
  static SEGOPS_MEMBER void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) - m[3];
  }
};

struct F4 {
  static constexpr int kOut = 4, kIn = 6;
  static constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;  // sqrt(1/2), sqrt(2)

  template <class V>
  static SEGOPS_MEMBER void image(const V (&d)[6], V (&t)[6]) {
    const V even_a = d[4] - d[2] * 2.f, odd_a = d[3] - d[1] * 2.f;
    const V even_b = d[4] - d[2] * 0.5f, odd_b = d[3] - d[1] * 0.5f;
    t[0] = (d[0] + d[4]) - d[2] * 2.5f;
    t[1] = even_a + odd_a * kA;
    t[2] = even_a - odd_a * kA;
    t[3] = even_b + odd_b * kB;
    t[4] = even_b - odd_b * kB;
    t[5] = (d[1] + d[5]) - d[3] * 2.5f;
  }
  template <class V>
  static SEGOPS_MEMBER void weight(const V (&g)[3], V (&t)[6]) {
    const V even_a = (g[0] + g[2] * 0.5f) * (-2.f / 3), odd_a = g[1] * (-2.f / 3 * kA);
    const V even_b = (g[0] + g[2] * 2.f) * (1.f / 6), odd_b = g[1] * (1.f / 6 * kB);
    t[0] = g[0];
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = g[2];
  }
  template <class V>
  static SEGOPS_MEMBER void output(const V (&m)[6], V (&y)[4]) {
    const V sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + (sum_a + sum_b);
    y[1] = difference_a * kA + difference_b * kB;
    y[2] = sum_a * 0.5f + sum_b * 2.f;
    y[3] = (difference_a * (kA / 2) + m[5]) + difference_b * (2 * kB);
  }
};

// The image of one tile: pixels `step` apart in rows `row_step` apart, points `point_step` apart.
template <class F, int kLanes>
SEGOPS_INLINE void transform_image(const float* from, int64_t row_step, int64_t step, float* to, int64_t point_step) {
  using V = Vec<float, kLanes>;
  constexpr int n = F::kIn;
  V half[n][n];
  for (int x = 0; x < n; ++x) {
    V column[n], points[n];
    for (int y = 0; y < n; ++y) column[y] = load<kLanes, float>(from + y * row_step + x * step);
    F::image(column, points);
    for (int y = 0; y < n; ++y) half[y][x] = points[y];
  }
  for (int y = 0; y < n; ++y) {
    V points[n];
    F::image(half[y], points);
    for (int x = 0; x < n; ++x) store<kLanes>(to + (y * n + x) * point_step, points[x]);
  }
}

template <class F, int kLanes>
SEGOPS_INLINE void transform_weight(const Vec<float, kLanes> (&from)[9], float* to, int64_t point_step) {
  using V = Vec<float, kLanes>;
  constexpr int n = F::kIn;
  V half[n][3];
  for (int x = 0; x < 3; ++x) {
    const V column[3] = {from[x], from[3 + x], from[6 + x]};
    V points[n];
    F::weight(column, points);
    for (int y = 0; y < n; ++y) half[y][x] = points[y];
  }
  for (int y = 0; y < n; ++y) {
    V points[n];
    F::weight(half[y], points);
    for (int x = 0; x < n; ++x) store<kLanes>(to + (y * n + x) * point_step, points[x]);
  }
}

// The outputs of one tile, and whether they are finite: `zero` stays zero as long as all of them are.
template <class F, int kLanes>
SEGOPS_INLINE void transform_output(const float* from, int64_t point_step, float* to, int64_t row_step, int64_t step,
                                    Vec<float, kLanes>& zero) {
  using V = Vec<float, kLanes>;
  constexpr int n = F::kIn, m = F::kOut;
  V half[m][n];
  for (int x = 0; x < n; ++x) {
    V points[n], column[m];
    for (int y = 0; y < n; ++y) points[y] = load<kLanes, float>(from + (y * n + x) * point_step);
    F::output(points, column);
    for (int y = 0; y < m; ++y) half[y][x] = column[y];
  }
  for (int y = 0; y < m; ++y) {
    V row[m];
    F::output(half[y], row);
    for (int x = 0; x < m; ++x) {
      store<kLanes>(to + y * row_step + x * step, row[x]);
      zero += row[x] * 0.f;
    }
  }
}

// The pattern of one step of a transposition: from two rows, every second group of kGroup elements of each.
template <int kLanes, int kGroup, bool kSecond>
SEGOPS_INLINE Vec<int32_t, kLanes> exchange() {
  Vec<int32_t, kLanes> order{};
  for (int i = 0; i < kLanes; ++i)
    order[i] = (i & kGroup) ? kLanes + i - (kSecond ? 0 : kGroup) : i + (kSecond ? kGroup : 0);
  return order;
}

template <int kLanes, int kGroup>
SEGOPS_INLINE void transpose_groups(Vec<float, kLanes> (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if (i & kGroup) continue;
    const Vec<float, kLanes> a = rows[i], b = rows[i + kGroup];
    rows[i] = __builtin_shuffle(a, b, exchange<kLanes, kGroup, false>());
    rows[i + kGroup] = __builtin_shuffle(a, b, exchange<kLanes, kGroup, true>());
  }
}

template <int kLanes>
SEGOPS_INLINE void transpose(Vec<float, kLanes> (&rows)[kLanes]) {
  if constexpr (kLanes >= 16) transpose_groups<kLanes, 8>(rows);
  if constexpr (kLanes >= 8) transpose_groups<kLanes, 4>(rows);
  transpose_groups<kLanes, 2>(rows);
  transpose_groups<kLanes, 1>(rows);
}

}  // namespace segops::SEGOPS_ISA
