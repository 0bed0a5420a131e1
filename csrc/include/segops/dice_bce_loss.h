// Contract of dice_bce_loss: sigmoid-Dice and binary cross-entropy from one read of the logits, for binary and multilabel
// targets. Channels are independent of each other.
//
// The steps are those of dice_ce_loss: statistics, value (dice_ce_loss_value, which knows nothing of where sums come
// from), backward. With x a logit, t its label in [0, 1], p = sigmoid(x), q the positive weight of the channel, w the
// pixel's weight and g = focal_gamma:
//   bce(x, t) = w (1 - p_t)^g (q t softplus(-x) + (1 - t) softplus(x)),  p_t = p t + (1 - p)(1 - t)
//   I = sum p t, P = sum p, T = sum t; squared: P = sum p^2, T = sum t^2
// An ignored element counts in none of the sums, and its gradient is zero.
#pragma once
#include "segops/interpolate.h"
#include "segops/planes.h"
#include "segops/types.h"

namespace segops {

// Labels of floating point outside [-kSoftLabelSlack, 1 + kSoftLabelSlack] are bad data: what interpolation in 16 bits
// overshoots by is not.
constexpr double kSoftLabelSlack = 1.0 / 128;

// [N, C, S]: element (n, c, s) at n * stride_n + c * stride_c + s * stride_s, in elements.
struct Elements {
  const void* data;
  int64_t stride_n, stride_c, stride_s;
};

struct DiceBceLossInputs {
  Elements logits;  // stride_s == 1 (planar) or stride_c == 1 (channels last)
  Dtype logits_dtype;
  int64_t batch, channels, pixels;  // N, C, S
  Elements target;                  // stride_s == 1 or stride_c == 1: on a device, as the logits have it
  Dtype target_dtype;               // uint8 (bool, too) or floating point
  const double* pos_weight;         // [C], or null for ones
  Elements pixel_weight;  // in the accumulation type (double for float64 logits, else float), laid out like target, or with
                          // stride_c == 0 (and stride_s == 1) for one weight a pixel; null data for ones
  bool ignores;           // whether elements whose label equals ignore_index are ignored
  int64_t ignore_index;
  double focal_gamma;  // >= 0
  bool squared;
};

struct DiceBceLossStatistics {
  DiceBceLossInputs in;
  double* overlap;  // [N, 3, C]: I, P, T; or null where only the cross-entropy is wanted
  double* bce;      // [2]: sum of weighted losses, sum of their weights (the number of elements, without weights)
  void* bce_map;    // weighted losses in the accumulation type, zero where ignored; or null
  int64_t map_stride_n, map_stride_c, map_stride_s;  // as the logits have it
  BadData* bad_labels;  // position in [N, C, S]; value: the label, or the bits of a floating-point label as a double's
};

struct DiceBceLossBackward {
  DiceBceLossInputs in;
  const double* grad_overlap;  // [N, 3, C]; or null for zeros. That of T is not used
  const double* grad_bce;      // [2]: derivative with respect to the sum of losses; the second is not used; or null
  void* grad_logits;           // dtype of the logits, strides as the logits have it
  int64_t grad_stride_n, grad_stride_c, grad_stride_s;
  bool warm;  // on a CPU: whether the gradient's memory has been touched before
};

// Coarse logits: the loss of their bilinear interpolation to the target's size, which never exists in memory. 16-bit
// logits are interpolated in float and not rounded in between. loss.in describes the interpolation: pixels = H * W, null
// logits; target, weights and map are planar.
struct DiceBceLossCoarseStatistics {
  DiceBceLossStatistics loss;
  CoarseLogits coarse;
};

// Gathers: each coarse gradient is the sum, in a fixed order, over the pixels that read its logit.
struct DiceBceLossCoarseBackward {
  DiceBceLossBackward loss;  // grad_logits null
  CoarseLogits coarse;
  Planes grad_logits;  // [N, C, h, w]
};

}  // namespace segops
