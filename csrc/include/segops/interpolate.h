// Where linear interpolation reads: the only statement of it in C++ (its sibling for Triton is
// segops/triton/interpolate.py).
//
// The formula is that of torch.nn.functional.interpolate(mode="bilinear"), in double on every backend: a coordinate of a few
// thousand rounded to float would put an error of 1e-4 on the weights, and backends would disagree.
#pragma once
#include "segops/planes.h"
#include "segops/types.h"

namespace segops {

// One axis of an interpolation from `in` to `out` elements (both at least 1).
struct LinearAxis {
  int64_t in, out;
  double step;  // between neighbouring outputs, in inputs
  bool align_corners;
};

// Logits that stand for their interpolation to a target's size: neither axis shrinks.
struct CoarseLogits {
  ConstPlanes planes;  // [N, C, h, w]
  LinearAxis vertical, horizontal;
};

// out[i] = (1 - weight) * in[low] + weight * in[high]
struct LinearTap {
  int64_t low, high;
  double weight;
};

// scale: outputs per input as the caller gave it, or 0 where the sizes alone decide. They do so too, as in torch on a CPU,
// where an axis keeps its size. A step of more than all inputs reads the last one all the same, and would overflow.
inline LinearAxis linear_axis(int64_t in, int64_t out, bool align_corners, double scale) {
  double step;
  if (align_corners)
    step = out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.;
  else if (scale > 0 && in != out)
    step = 1. / scale < static_cast<double>(in) ? 1. / scale : static_cast<double>(in);
  else
    step = static_cast<double>(in) / static_cast<double>(out);
  return LinearAxis{in, out, step, align_corners};
}

// The coordinate, in inputs, of output i.
SEGOPS_HOST_DEVICE inline double linear_source(const LinearAxis& axis, int64_t i) {
  const double at = static_cast<double>(i);
  if (axis.align_corners) return axis.step * at;
  const double source = axis.step * (at + 0.5) - 0.5;
  return source > 0 ? source : 0.;
}

SEGOPS_HOST_DEVICE inline LinearTap linear_tap(const LinearAxis& axis, int64_t i) {
  const double source = linear_source(axis, i);
  const int64_t floor = static_cast<int64_t>(source), low = floor < axis.in - 1 ? floor : axis.in - 1;
  const double weight = source - static_cast<double>(low);
  return LinearTap{low, low < axis.in - 1 ? low + 1 : low, weight < 1 ? weight : 1.};
}

// The first output whose tap has `low` or more as its lower input (axis.out if there is none): the outputs that read input j
// are those from first_output(axis, j - 1) to first_output(axis, j + 1), the second half of them with weight 1 - w. What is
// estimated by a division is settled by the formula above, so that forward and gather agree on every output.
SEGOPS_HOST_DEVICE inline int64_t first_output(const LinearAxis& axis, int64_t low) {
  if (low <= 0) return 0;
  if (low >= axis.in) return axis.out;
  if (axis.step <= 0) return axis.out;
  const double shift = axis.align_corners ? 0. : 0.5;
  const double estimate = (static_cast<double>(low) + shift) / axis.step - shift;
  int64_t i = estimate < static_cast<double>(axis.out) ? static_cast<int64_t>(estimate) : axis.out;
  if (i < 0) i = 0;
  while (i > 0 && linear_tap(axis, i - 1).low >= low) --i;
  while (i < axis.out && linear_tap(axis, i).low < low) ++i;
  return i;
}

}  // namespace segops
