// Contract of upsample_bilinear2d and upsample_cat: bilinear interpolation of [N, C, h, w] to [N, C, H, W], up or down.
//
// Input and output have one element type; 16-bit types are interpolated in float, float64 in double. Each may be planar or
// channels last, independently of the other. Backward gathers: each input's gradient is the sum, in a fixed order, over the
// outputs that read it.
#pragma once
#include "segops/interpolate.h"
#include "segops/planes.h"

namespace segops {

struct UpsampleBilinear {
  Dtype dtype;  // float32, float64, bfloat16 or float16
  ConstPlanes input;
  Planes output;
  LinearAxis vertical, horizontal;
  bool warm;  // on a CPU: whether the output's memory has been touched before
};

struct UpsampleBilinearBackward {
  Dtype dtype;
  ConstPlanes grad_output;  // may be a slice of the channels of a larger gradient
  Planes grad_input;
  LinearAxis vertical, horizontal;  // as in forward
};

// The interpolation goes into some channels of the result, the skip connection of the same height and width into the others.
struct UpsampleCat {
  UpsampleBilinear upsample;
  ConstPlanes skip;
  Planes skip_output;  // of the same sizes as skip
};

}  // namespace segops
