// Contract of upsample_argmax: the class with the largest logit of each pixel of the bilinearly interpolated logits, which
// never exist in memory.
#pragma once
#include "segops/interpolate.h"
#include "segops/planes.h"

namespace segops {

struct UpsampleArgmax {
  Dtype logits_dtype;  // interpolated in float (double for float64)
  ConstPlanes logits;  // [N, C, h, w], C >= 1
  LinearAxis vertical, horizontal;
  Dtype labels_dtype;  // uint8 (C <= 256), int16, int32 or int64
  void* labels;        // [N, H, W] contiguous; the smallest class among equals, the first NaN if there is one
  void* score;         // [N, H, W] contiguous in the accumulation type: softmax probability of that class; or null
};

}  // namespace segops
