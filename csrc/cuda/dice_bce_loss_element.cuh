// The maths of dice_bce_loss for one element, and its label.
#pragma once
#include "planes.cuh"
#include "reduce.cuh"
#include "segops/dice_bce_loss.h"

namespace segops::cuda::dice_bce {

__device__ __forceinline__ float reciprocal(float x) { return device::reciprocal_approx(x); }
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

// log(1 + e) for 0 <= e <= 1, as exactly as numbers of type T need it.
template <class T, class A>
__device__ __forceinline__ A log_of_one_plus(A e) {
  if constexpr (sizeof(T) == 2)  // the logarithm alone would lose what 1 + e rounds away
    return e < 0.0078125f ? e * (1 - e * (0.5f - e * 0.333333333f)) : 0.693147181f * device::log2_approx(1 + e);
  else if constexpr (sizeof(T) == 4)
    return log1pf(e);
  else
    return log1p(e);
}

// x^exponent for x >= 0 and an exponent above 0.
template <class T, class A>
__device__ __forceinline__ A power(A x, A exponent) {
  if (exponent == A(2)) return x * x;
  if constexpr (sizeof(T) == 2)
    return device::exp2_approx(exponent * device::log2_approx(x));
  else if constexpr (sizeof(T) == 4)
    return powf(x, exponent);
  else
    return pow(x, exponent);
}

// From one exponential, each precise where it is small.
template <class T>
struct Sigmoid {
  using A = AccumulatorOf<T>;
  A prob, rest;  // sigmoid(x), sigmoid(-x)
  A up, down;    // softplus(x), softplus(-x)

  __device__ __forceinline__ explicit Sigmoid(A x) {
    const A size = x < 0 ? -x : x, e = exponential<T>(-size), large = reciprocal(1 + e), small = e * large;
    const A log_sum = log_of_one_plus<T>(e);
    prob = x < 0 ? small : large;
    rest = x < 0 ? large : small;
    up = larger(x, A(0)) + log_sum;  // a NaN comes back by the logarithm
    down = larger(-x, A(0)) + log_sum;
  }

  // q: weight of the positive label.
  __device__ __forceinline__ A cross_entropy(A t, A q) const { return q * t * down + (1 - t) * up; }
  __device__ __forceinline__ A slope(A t, A q) const { return (1 - t) * prob - q * t * rest; }
  // 1 - p_t without cancellation. Labels beyond [0, 1] could make it negative.
  __device__ __forceinline__ A missed(A t) const {
    const A r = prob * (1 - t) + rest * t;
    return r < 0 ? A(0) : r;
  }
};

// What is constant over all elements.
template <class T>
struct Constants {
  using A = AccumulatorOf<T>;
  A gamma;
  bool focal, squared;

  __device__ __forceinline__ explicit Constants(const DiceBceLossInputs& in)
      : gamma(static_cast<A>(in.focal_gamma)), focal(in.focal_gamma != 0), squared(in.squared) {}

  // The cross-entropy of an element, but for its weight.
  __device__ __forceinline__ A loss(const Sigmoid<T>& of, A t, A q) const {
    A result = of.cross_entropy(t, q);
    if (focal) result *= power<T>(of.missed(t), gamma);
    return result;
  }

  // Its derivative.
  __device__ __forceinline__ A loss_slope(const Sigmoid<T>& of, A t, A q) const {
    A result = of.slope(t, q);
    if (focal) {
      // gamma < 1: missed^gamma / missed is infinite where nothing is missed, its product with the slope is not.
      constexpr A kLeast = sizeof(A) == 8 ? A(1e-300) : A(1e-37);  // whose reciprocal is finite
      const A r = of.missed(t), of_r = r > kLeast ? (1 - 2 * t) * (of.prob * of.rest) * reciprocal(r) : A(0);
      result = power<T>(r, gamma) * (result + gamma * of_r * of.cross_entropy(t, q));
    }
    return result;
  }
};

// The loss's derivatives with respect to the sums of one channel.
template <class A>
struct Slopes {
  A i, p, q;  // q: weight of the positive label
};

template <class A>
__device__ __forceinline__ Slopes<A> slopes_of(const DiceBceLossBackward& p, int64_t image, int channel) {
  Slopes<A> slopes{0, 0, 1};
  if (p.grad_overlap) {
    const double* const of = p.grad_overlap + image * 3 * p.in.channels + channel;
    slopes.i = static_cast<A>(device::load(of));
    slopes.p = static_cast<A>(device::load(of + p.in.channels));
  }
  if (p.in.pos_weight) slopes.q = static_cast<A>(device::load(p.in.pos_weight + channel));
  return slopes;
}

template <class T, class A>
__device__ __forceinline__ A gradient(const Constants<T>& constant, A x, A t, A weight, A bce, const Slopes<A>& slopes) {
  const Sigmoid<T> of(x);
  A result = (slopes.i * t + (constant.squared ? 2 * slopes.p * of.prob : slopes.p)) * (of.prob * of.rest);
  // Of a cross-entropy that is left out, its NaN is left out, too.
  if (bce != 0) result += bce * weight * constant.loss_slope(of, t, slopes.q);
  return result;
}

// A label that does not count, ignored or bad, is NaN from here on.
template <class A>
__device__ __forceinline__ bool counts(A label) {
  return label == label;
}

// Calls with a label of the type of the labels, which is of 16 bits at most if kNarrow.
template <bool kNarrow = false, class Call>
__device__ __forceinline__ void as_label(Dtype dtype, const Call& call) {
  if constexpr (!kNarrow) {
    if (dtype == Dtype::float32) return call(float{});
    if (dtype == Dtype::float64) return call(double{});
  }
  switch (dtype) {
    case Dtype::uint8: return call(uint8_t{});
    case Dtype::bfloat16: return call(__nv_bfloat16{});
    default: return call(__half{});
  }
}

// What a label is compared in: float holds every label but a double.
__device__ __forceinline__ double exact(double label) { return label; }
__device__ __forceinline__ float exact(uint8_t label) { return label; }
__device__ __forceinline__ float exact(float label) { return label; }
__device__ __forceinline__ float exact(__half label) { return device::to_float(label); }
__device__ __forceinline__ float exact(__nv_bfloat16 label) { return device::to_float(label); }

// What is recorded of a bad label.
__device__ __forceinline__ int64_t recorded(uint8_t label) { return label; }
template <class L>
__device__ __forceinline__ int64_t recorded(L label) {
  const double value = exact(label);
  int64_t bits;
  copy_bits(&bits, &value, 8);
  return bits;
}

// Calls note(value to record) where the label is neither one nor ignored.
template <class A, class L, class Note>
__device__ __forceinline__ A read_label(const DiceBceLossInputs& in, L raw, const Note& note) {
  const auto label = exact(raw);
  using E = decltype(exact(raw));
  const bool ignored = in.ignores && label == static_cast<E>(in.ignore_index);
  const bool valid = label >= E(-kSoftLabelSlack) && label <= E(1 + kSoftLabelSlack);
  if (!ignored && !valid) note(recorded(raw));
  return ignored || !valid ? A(NAN) : static_cast<A>(label);
}

// What a thread has seen of them, in few registers.
struct BadOfThread {
  int count = 0;
  int64_t position = 0, value = 0;

  __device__ __forceinline__ void record(int64_t at, int64_t what) {
    if (count++ > 0 && position < at) return;
    position = at;
    value = what;
  }
  __device__ __forceinline__ BadData all() const { return {count, position, value}; }
};

}  // namespace segops::cuda::dice_bce
