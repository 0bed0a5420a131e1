// The terms of dice_bce_loss for vectors of elements: everything comes from one exponential, e^-|x|, and none of it
// overflows or cancels.
#pragma once
#include "segops/dice_bce_loss.h"
#include "vec.h"

namespace segops::SEGOPS_ISA {

// ln(1 + e) for e in [0, 1] and NaN, relative error 3e-8 before rounding.
template <int kLanes>
SEGOPS_INLINE Vec<float, kLanes> log1p(Vec<float, kLanes> e) {
  Vec<float, kLanes> q = e * 0.005232690833508968f - 0.029505228623747826f;
  q = q * e + 0.07822594791650772f;
  q = q * e - 0.13663245737552643f;
  q = q * e + 0.19106008112430573f;
  q = q * e - 0.2484298199415207f;
  q = q * e + 0.3331909775733948f;
  q = q * e - 0.4999949336051941f;
  q = q * e + 0.9999999403953552f;
  return q * e;
}

template <int kLanes>
SEGOPS_INLINE Vec<double, kLanes> log1p(Vec<double, kLanes> e) {
  for (int i = 0; i < kLanes; ++i) e[i] = __builtin_log1p(e[i]);
  return e;
}

template <int kLanes, class T>
SEGOPS_INLINE Vec<T, kLanes> magnitude_of(Vec<T, kLanes> x) {
  using B = Vec<BitsOf<T>, kLanes>;
  const BitsOf<T> all_but_sign = static_cast<BitsOf<T>>(~(BitsOf<T>(1) << (8 * sizeof(T) - 1)));
  return reinterpret_cast<Vec<T, kLanes>>(reinterpret_cast<B>(x) & all_but_sign);
}

// Of `kTile` vectors of logits, side by side so that their dependency chains overlap.
template <class T, int kLanes, int kTile>
struct Sigmoid {
  using V = Vec<T, kLanes>;
  V magnitude[kTile], small[kTile];  // |x|, e^-|x|
  V p[kTile], q[kTile];              // sigmoid(x), sigmoid(-x)
  V pq[kTile];                       // their product, the derivative of p

  SEGOPS_MEMBER explicit Sigmoid(const V (&x)[kTile]) {
    Vec<BitsOf<T>, kLanes> unused{};
    for (int k = 0; k < kTile; ++k) magnitude[k] = magnitude_of<kLanes, T>(x[k]);
    for (int k = 0; k < kTile; ++k) small[k] = -magnitude[k];
    exp_tile<T, kLanes, kTile, false>(small, unused);
    for (int k = 0; k < kTile; ++k) {
      const V large = T(1) / (T(1) + small[k]), rest = small[k] * large;
      p[k] = x[k] >= T(0) ? large : rest;
      q[k] = x[k] >= T(0) ? rest : large;
      pq[k] = large * rest;
    }
  }
};

// The options of the loss in the type it is computed in.
template <class T>
struct Terms {
  T gamma;
  enum { any, one, two } power;

  explicit Terms(const DiceBceLossInputs& in)
      : gamma(static_cast<T>(in.focal_gamma)),
        power(in.focal_gamma == 1   ? one
              : in.focal_gamma == 2 ? two
                                    : any) {}

  // wrong^gamma for wrong >= 0 and gamma > 0.
  template <int kLanes, int kTile>
  SEGOPS_MEMBER void focus(const Vec<T, kLanes> (&wrong)[kTile], Vec<T, kLanes> (&factor)[kTile]) const {
    if (power == any) {
      Vec<BitsOf<T>, kLanes> unused{};
      for (int k = 0; k < kTile; ++k) factor[k] = gamma * log<kLanes>(wrong[k]);
      exp_tile<T, kLanes, kTile, false>(factor, unused);
    } else {
      for (int k = 0; k < kTile; ++k) factor[k] = power == one ? wrong[k] : wrong[k] * wrong[k];
    }
  }
};

// 1 - p_t; soft labels may lie a little outside of [0, 1].
template <class V>
SEGOPS_INLINE V wrong_share(V p, V q, V label) {
  const V wrong = p * (1 - label) + q * label;
  return wrong < 0 ? V{} : wrong;
}

// Cross-entropy without its factors, softplus(-x) to the label's and softplus(x) to the other share: infinity at a label of
// zero is NaN, as in torch.
template <class T, int kLanes, int kTile>
SEGOPS_INLINE Vec<T, kLanes> plain_loss(const Sigmoid<T, kLanes, kTile>& s, int k, Vec<T, kLanes> x, Vec<T, kLanes> label,
                                        Vec<T, kLanes> positive) {
  const auto own = positive * label, other = 1 - label;
  return (own + other) * log1p<kLanes>(s.small[k]) + s.magnitude[k] * (x >= T(0) ? other : own);
}

template <bool kFocal, class T, int kLanes, int kTile>
SEGOPS_INLINE void loss_tile(const Terms<T>& terms, const Sigmoid<T, kLanes, kTile>& s, const Vec<T, kLanes> (&x)[kTile],
                             const Vec<T, kLanes> (&label)[kTile], const Vec<T, kLanes> (&positive)[kTile],
                             Vec<T, kLanes> (&loss)[kTile]) {
  for (int k = 0; k < kTile; ++k) loss[k] = plain_loss(s, k, x[k], label[k], positive[k]);
  if constexpr (kFocal) {
    Vec<T, kLanes> wrong[kTile], factor[kTile];
    for (int k = 0; k < kTile; ++k) wrong[k] = wrong_share(s.p[k], s.q[k], label[k]);
    terms.template focus<kLanes, kTile>(wrong, factor);
    for (int k = 0; k < kTile; ++k) loss[k] *= factor[k];
  }
}

// Derivative of the loss with respect to x. With focal factor d^g, d = 1 - p_t: d^g (l' + g l d'/d), and d'/d stays finite.
template <bool kFocal, class T, int kLanes, int kTile>
SEGOPS_INLINE void slope_tile(const Terms<T>& terms, const Sigmoid<T, kLanes, kTile>& s, const Vec<T, kLanes> (&x)[kTile],
                              const Vec<T, kLanes> (&label)[kTile], const Vec<T, kLanes> (&positive)[kTile],
                              Vec<T, kLanes> (&slope)[kTile]) {
  using V = Vec<T, kLanes>;
  for (int k = 0; k < kTile; ++k) slope[k] = s.p[k] * (1 - label[k]) - s.q[k] * (positive[k] * label[k]);
  if constexpr (kFocal) {
    V wrong[kTile], factor[kTile];
    for (int k = 0; k < kTile; ++k) wrong[k] = wrong_share(s.p[k], s.q[k], label[k]);
    terms.template focus<kLanes, kTile>(wrong, factor);
    for (int k = 0; k < kTile; ++k) {
      const V loss = plain_loss(s, k, x[k], label[k], positive[k]);
      const V rate = s.pq[k] * (1 - 2 * label[k]) / (wrong[k] > 0 ? wrong[k] : V{} + T(1));
      slope[k] = factor[k] * (slope[k] + terms.gamma * (wrong[k] > 0 ? rate : V{}) * loss);  // gamma * loss may overflow
    }
  }
}

}  // namespace segops::SEGOPS_ISA
