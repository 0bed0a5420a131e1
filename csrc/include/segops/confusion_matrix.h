// Contract of confusion_matrix: pixels counted by their label and their predicted class.
#pragma once
#include "segops/types.h"

namespace segops {

// A pixel whose label is ignored or no class counts nowhere, and nobody looks at its prediction.
struct ConfusionMatrix {
  // Floating point: logits [N, C, S], whose largest is a pixel's class, the first among equals, the first NaN if there is
  // one; element (n, c, s) at n * stride_n + c * stride_c + s * stride_s (in elements), where stride_s == 1 (planar) or
  // stride_c == 1 (channels last). Integer: classes [N, S], contiguous.
  const void* prediction;
  Dtype prediction_dtype;
  int64_t batch, classes, pixels;  // N, C, S
  int64_t stride_n, stride_c, stride_s;
  const void* target;  // [N, S] contiguous: uint8, int16, int32 or int64
  Dtype target_dtype;
  bool has_ignore_index;
  int64_t ignore_index;
  int64_t* counts;           // [C, C], rows = target. Zeroed by the caller
  BadData* bad_labels;       // positions are row-major in [N, S]
  BadData* bad_predictions;  // the same; null for logits

  SEGOPS_HOST_DEVICE bool of_logits() const { return prediction_dtype <= Dtype::float16; }
};

}  // namespace segops
