// Contract of dice_ce_loss for coarse logits: the loss of their bilinear interpolation to the size of the target, which
// never exists in memory. 16-bit logits are interpolated in float and not rounded in between.
#pragma once
#include "segops/dice_ce_loss.h"
#include "segops/interpolate.h"
#include "segops/planes.h"

namespace segops {

// loss.in describes the interpolation: its pixels are H * W, its logits null and its strides zero.
struct DiceCeLossCoarseStatistics {
  DiceCeLossStatistics loss;
  CoarseLogits coarse;
};

// Gathers: each coarse gradient is the sum, in a fixed order, over the pixels that read its logit.
struct DiceCeLossCoarseBackward {
  DiceCeLossBackward loss;  // grad_logits null
  CoarseLogits coarse;
  Planes grad_logits;  // [N, C, h, w]
};

}  // namespace segops
