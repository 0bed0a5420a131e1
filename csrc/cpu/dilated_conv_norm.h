// Batch norm in training and the activation after it, channel by channel: what a channel's sums read is in a cache when it
// is read again. Sums are of float vectors over a block, and of blocks in double.
#pragma once
#include "dilated_conv_epilogue.h"
#include "segops/dilated_conv_norm.h"

namespace segops::SEGOPS_ISA {

class NormChannel {
 public:
  NormChannel(const ConvNorm& p, int64_t c) : p_(p), c_(c) {}

  void measure(double eps, float* variance) const {
    const double count = static_cast<double>(p_.batch * p_.pixels);
    const double mean = sums<1>([](V x, V, V(&term)[1]) { term[0] = x; }, nullptr).of[0] / count;
    const V middle = broadcast<kLanes, float>(static_cast<float>(mean));
    // Of the distances to the rounded mean, whose own mean takes the rest away.
    const Sums<2> s = sums<2>(
        [&](V x, V, V(&term)[2]) {
          term[0] = x - middle;
          term[1] = term[0] * term[0];
        },
        nullptr);
    const double rest = s.of[0] / count, spread = s.of[1] / count - rest * rest;
    p_.mean[c_] = static_cast<float>(mean);
    variance[c_] = static_cast<float>(spread);
    p_.inverse[c_] = static_cast<float>(1 / __builtin_sqrt(spread + eps));
  }

  void write(float* output) const {
    const V scale = broadcast<kLanes, float>(scale_of()), offset = broadcast<kLanes, float>(offset_of());
    const auto slope = [](int) { return broadcast<kLanes, float>(static_cast<float>(kLeakySlope)); };
    each_run([&](int64_t from, int64_t size) {
      const float* const x = p_.image + from;
      const auto finished = [&](auto(&v)[kCount]) {
        for (auto& vector : v) vector = vector * scale + offset;
        activate<float, kLanes, kCount>(v, p_.activation, slope);
      };
      int64_t i = 0;
      V v[kCount];
      for (; i + kStep <= size; i += kStep) {
        for (int k = 0; k < kCount; ++k) v[k] = load<kLanes, float>(x + i + k * kLanes);
        finished(v);
        for (int k = 0; k < kCount; ++k) store<kLanes>(output + from + i + k * kLanes, v[k]);
      }
      if (i == size) return;
      float last[kStep] = {};
      __builtin_memcpy(last, x + i, static_cast<size_t>(size - i) * sizeof(float));
      for (int k = 0; k < kCount; ++k) v[k] = load<kLanes, float>(last + k * kLanes);
      finished(v);
      for (int k = 0; k < kCount; ++k) store<kLanes>(last + k * kLanes, v[k]);
      __builtin_memcpy(output + from + i, last, static_cast<size_t>(size - i) * sizeof(float));
    });
  }

  void differentiate(const ConvNormBackward& p) const {
    switch (p_.activation) {
      case Activation::relu: return differentiate<Activation::relu>(p);
      case Activation::leaky_relu: return differentiate<Activation::leaky_relu>(p);
      case Activation::silu: return differentiate<Activation::silu>(p);
      case Activation::sigmoid: return differentiate<Activation::sigmoid>(p);
      default: return differentiate<Activation::none>(p);
    }
  }

 private:
  static constexpr int kLanes = kNativeLanes<float>, kCount = 4;
  static constexpr int64_t kStep = kCount * kLanes, kBlock = 1 << 12;
  using V = Vec<float, kLanes>;

  template <int kSums>
  struct Sums {
    double of[kSums] = {};
  };

  float scale_of() const { return p_.weight[c_] * p_.inverse[c_]; }
  float offset_of() const { return p_.bias[c_] - p_.mean[c_] * scale_of(); }

  // The channel's part of each image.
  template <class Work>
  SEGOPS_MEMBER void each_run(const Work& work) const {
    for (int64_t n = 0; n < p_.batch; ++n) work((n * p_.channels + c_) * p_.pixels, p_.pixels);
  }

  // Sums of what `terms` makes of the image and, if there is one, the gradient.
  template <int kSums, class Terms>
  SEGOPS_MEMBER Sums<kSums> sums(const Terms& terms, const float* grad) const {
    Sums<kSums> total;
    each_run([&](int64_t from, int64_t size) {
      for (int64_t begin = 0; begin < size; begin += kBlock) {
        const int64_t end = begin + kBlock < size ? begin + kBlock : size;
        V sum[kSums][kCount] = {}, term[kSums];
        float rest[kSums] = {};
        const float *const x = p_.image + from, *const g = grad ? grad + from : x;
        int64_t i = begin;
        for (; i + kStep <= end; i += kStep)
          for (int k = 0; k < kCount; ++k) {
            terms(load<kLanes, float>(x + i + k * kLanes), load<kLanes, float>(g + i + k * kLanes), term);
            for (int s = 0; s < kSums; ++s) sum[s][k] += term[s];
          }
        for (; i < end; ++i) {
          terms(broadcast<kLanes, float>(x[i]), broadcast<kLanes, float>(g[i]), term);
          for (int s = 0; s < kSums; ++s) rest[s] += term[s][0];
        }
        for (int s = 0; s < kSums; ++s) {
          for (int k = 1; k < kCount; ++k) sum[s][0] += sum[s][k];
          float lanes[kLanes];
          store<kLanes>(lanes, sum[s][0]);
          total.of[s] += static_cast<double>(sum_of_lanes<float, kLanes>(lanes) + rest[s]);
        }
      }
    });
    return total;
  }

  template <Activation kActivation>
  void differentiate(const ConvNormBackward& p) const {
    const V scale = broadcast<kLanes, float>(scale_of()), offset = broadcast<kLanes, float>(offset_of());
    const V mean = broadcast<kLanes, float>(p_.mean[c_]);
    const auto before = [&](V x, V grad) { return before_activation<kActivation>(x * scale + offset, grad); };
    const Sums<2> s = sums<2>(
        [&](V x, V grad, V(&term)[2]) {
          term[0] = before(x, grad);
          term[1] = term[0] * (x - mean);
        },
        p.grad_output);
    const double inverse = p_.inverse[c_], count = static_cast<double>(p_.batch * p_.pixels);
    p.grad_bias[c_] = static_cast<float>(s.of[0]);
    p.grad_weight[c_] = static_cast<float>(s.of[1] * inverse);
    const V level = broadcast<kLanes, float>(static_cast<float>(s.of[0] / count));
    const V slope = broadcast<kLanes, float>(static_cast<float>(s.of[1] / count * inverse * inverse));
    each_run([&](int64_t from, int64_t size) {
      const float *const x = p_.image + from, *const g = p.grad_output + from;
      float* const to = p.grad_image + from;
      const auto result = [&](V image, V grad) { return (before(image, grad) - level - (image - mean) * slope) * scale; };
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes)
        store<kLanes>(to + i, result(load<kLanes, float>(x + i), load<kLanes, float>(g + i)));
      for (; i < size; ++i) to[i] = result(broadcast<kLanes, float>(x[i]), broadcast<kLanes, float>(g[i]))[0];
    });
  }

  // The gradient of what the activation was applied to, y.
  template <Activation kActivation>
  static SEGOPS_MEMBER V before_activation(V y, V grad) {
    if constexpr (kActivation == Activation::relu) return y <= 0.f ? V{} : grad;
    if constexpr (kActivation == Activation::leaky_relu) return y > 0.f ? grad : grad * static_cast<float>(kLeakySlope);
    if constexpr (kActivation == Activation::silu || kActivation == Activation::sigmoid) {
      const V from[1] = {y};
      V s[1];
      sigmoids<float, kLanes, 1>(from, s);
      if constexpr (kActivation == Activation::sigmoid) return grad * s[0] * (1.f - s[0]);
      return grad * s[0] * (1.f + y * (1.f - s[0]));
    }
    return grad;
  }

  const ConvNorm& p_;
  const int64_t c_;
};

inline bool is_small(const ConvNorm& p) { return p.batch * p.channels * p.pixels < 1 << 15; }

inline Status norm_forward(const ConvNormForward& p, const Parallel& parallel) {
  for_each_item(parallel, p.norm.channels, is_small(p.norm), [&](int64_t c, int32_t) {
    const NormChannel channel(p.norm, c);
    if (p.variance) channel.measure(p.eps, p.variance);
    channel.write(p.output);
  });
  return Status::ok;
}

inline Status norm_backward(const ConvNormBackward& p, const Parallel& parallel) {
  for_each_item(parallel, p.norm.channels, is_small(p.norm),
                [&](int64_t c, int32_t) { NormChannel(p.norm, c).differentiate(p); });
  return Status::ok;
}

}  // namespace segops::SEGOPS_ISA
