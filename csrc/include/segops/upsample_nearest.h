// Contract of upsample_nearest2d and bed_of_nails2d: each output is one input, or zero. Elements are moved as bits.
#pragma once
#include "segops/planes.h"

namespace segops {

// One axis of torch.nn.functional.interpolate(mode="nearest"), whose coordinates are float.
struct NearestAxis {
  int64_t in, out;
  float step;     // between neighbouring outputs, in inputs
  float inverse;  // of it, for estimates
};

// scale: outputs per input as the caller gave it, or 0 where the sizes alone decide.
inline NearestAxis nearest_axis(int64_t in, int64_t out, double scale) {
  const float step = scale > 0 ? static_cast<float>(1. / scale) : static_cast<float>(in) / static_cast<float>(out);
  return NearestAxis{in, out, step, 1.f / step};
}

// The input that output i is.
SEGOPS_HOST_DEVICE inline int64_t nearest_source(const NearestAxis& axis, int64_t i) {
  if (axis.out == axis.in) return i;
  if (axis.out == 2 * axis.in) return i >> 1;
  const int64_t source = static_cast<int64_t>(static_cast<float>(i) * axis.step);
  return source < axis.in - 1 ? source : axis.in - 1;
}

// The first output that is input `source` or a later one (axis.out if there is none).
SEGOPS_HOST_DEVICE inline int64_t first_nearest_output(const NearestAxis& axis, int64_t source) {
  if (source <= 0) return 0;
  if (source >= axis.in) return axis.out;
  const float estimate = static_cast<float>(source) * axis.inverse;
  int64_t i = estimate < static_cast<float>(axis.out) ? static_cast<int64_t>(estimate) : axis.out;
  while (i > 0 && nearest_source(axis, i - 1) >= source) --i;
  while (i < axis.out && nearest_source(axis, i) < source) ++i;
  return i;
}

struct UpsampleNearest {
  Dtype dtype;
  ConstPlanes input;
  Planes output;
  NearestAxis vertical, horizontal;
  bool warm;  // on a CPU: whether the output's memory has been touched before
};

// Each input's gradient is the sum, in row-major order, over the outputs that are it.
struct UpsampleNearestBackward {
  Dtype dtype;
  ConstPlanes grad_output;
  Planes grad_input;
  NearestAxis vertical, horizontal;
};

// output [N, C, h * scale, w * scale] has the input at multiples of scale and zeros between; the transpose picks them.
struct BedOfNails {
  Dtype dtype;
  ConstPlanes input;
  Planes output;
  int64_t scale;
  bool transposed;
  bool warm;  // as above
};

}  // namespace segops
