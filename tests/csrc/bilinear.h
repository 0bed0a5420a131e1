// Bilinear interpolation and its transpose by the definition, a tap at a time, for the drivers of operators that have them.
#pragma once
#include <array>

#include "image.h"
#include "segops/interpolate.h"

namespace driver {

// From planes of vertical.in x horizontal.in to planes of vertical.out x horizontal.out; i is an element of the latter.
struct Bilinear {
  segops::LinearAxis vertical, horizontal;

  struct Tap {
    int64_t at;  // in row-major order of the planes that are interpolated
    double weight;
  };
  // In double: 32-bit weights are part of what the kernels may round.
  std::array<Tap, 4> taps(int64_t i) const {
    const segops::LinearTap y = row(i), x = column(i);
    const int64_t plane = i / horizontal.out / vertical.out;
    const int64_t upper = (plane * vertical.in + y.low) * horizontal.in, lower = upper + (y.high - y.low) * horizontal.in;
    return {{{upper + x.low, (1 - y.weight) * (1 - x.weight)},
             {upper + x.high, (1 - y.weight) * x.weight},
             {lower + x.low, y.weight * (1 - x.weight)},
             {lower + x.high, y.weight * x.weight}}};
  }
  bool reads_first_of_plane(int64_t i) const { return row(i).low == 0 && column(i).low == 0; }

  double interpolated(const Image& image, int64_t i) const {
    double sum = 0;
    for (const Tap& tap : taps(i)) sum += tap.weight * image.get(tap.at);
    return sum;
  }

  // The gradient of what is interpolated, from that of the interpolation.
  template <class Number>
  std::vector<Number> transposed(const std::vector<Number>& gradient) const {
    const int64_t count = static_cast<int64_t>(gradient.size()), planes = count / (vertical.out * horizontal.out);
    std::vector<Number> sums(static_cast<size_t>(planes * vertical.in * horizontal.in), 0);
    for (int64_t i = 0; i < count; ++i)
      for (const Tap& tap : taps(i)) sums[static_cast<size_t>(tap.at)] += tap.weight * gradient[static_cast<size_t>(i)];
    return sums;
  }

 private:
  segops::LinearTap row(int64_t i) const { return segops::linear_tap(vertical, i / horizontal.out % vertical.out); }
  segops::LinearTap column(int64_t i) const { return segops::linear_tap(horizontal, i % horizontal.out); }
};

}  // namespace driver
