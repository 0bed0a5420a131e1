// Contract of dice_ce_loss: softmax-Dice and weighted cross-entropy from one read of the logits.
//
// Three steps, each an operator of its own:
//   statistics  logits, target -> per image and class the overlap sums I, P, T, and the sums of the cross-entropy
//   value       sums -> loss, and the derivative of the loss with respect to each sum (O(N C) scalar maths, here)
//   backward    logits, target, those derivatives -> gradient of the logits
// Between statistics and value the sums of several ranks may be added.
#pragma once
#include "segops/types.h"

namespace segops {

struct DiceCeLossInputs {
  const void* logits;  // [N, C, S]; element (n, c, s) at n * stride_n + c * stride_c + s * stride_s (in elements),
                       // where stride_s == 1 (planar) or stride_c == 1 (channels last)
  Dtype logits_dtype;
  int64_t batch, classes, pixels;  // N, C, S
  int64_t stride_n, stride_c, stride_s;
  const void* target;  // [N, S] contiguous class indices
  Dtype target_dtype;
  const double* weight;      // [C], or null for ones: class weights of the cross-entropy
  const void* pixel_weight;  // [N, S] in the accumulation type (double for float64 logits, else float), or null for ones
  int64_t ignore_index;
  double label_smoothing;
  bool squared;  // P sums p^2 instead of p
};

struct DiceCeLossStatistics {
  DiceCeLossInputs in;
  double* overlap;     // [N, 3, C]: I = sum p t, P = sum p (or p^2), T = sum t; or null where only the CE is wanted
  double* ce;          // [2]: sum of weighted pixel losses, sum of their weights
  void* ce_map;        // [N, S] in the accumulation type: weighted pixel losses, zero where ignored; or null
  int64_t* confusion;  // [C, C] of argmax, rows = target; or null. Zeroed by the caller
  BadData* bad_labels;
};

struct DiceCeLossBackward {
  DiceCeLossInputs in;
  const double* grad_overlap;  // [N, 3, C]: derivatives of the loss; or null for zeros. That of T is not used
  const double* grad_ce;       // [2]: derivative with respect to the sum of pixel losses; the second is not used; or null
  void* grad_logits;           // same type and strides as logits
  int64_t grad_stride_n, grad_stride_c, grad_stride_s;
  bool warm;  // on a CPU: whether the gradient's memory has been touched before
};

// Score = (i * I + smooth) / (den_i * I + den_p * P + den_t * T + smooth) covers every overlap:
//   dice (2; 0, 1, 1), jaccard (1; -1, 1, 1), tversky (1; 1 - alpha - beta, alpha, beta).
struct DiceCeLossValue {
  bool with_overlap;
  int64_t batch, classes;
  const double* overlap;            // [N, 3, C]; not read without overlap
  const double* ce;                 // [2]
  const double* dice_class_weight;  // [C] or null
  double num_i, den_i, den_p, den_t, smooth;
  double ce_weight, dice_weight;
  bool batch_dice, include_background, skip_absent, ce_mean;
  double* loss;          // [1]
  double* parts;         // [2]: ce, dice
  double* scores;        // [N or 1, C]; not written without overlap
  double* grad_overlap;  // [N, 3, C]; not written without overlap
  double* grad_ce;       // [2]
};

// The scalar maths of the loss and its derivatives, the same lines for host and device: a row is an image, or the whole
// batch where the images are pooled; a cell is one row and class. Each cell is computed by itself, so a device may share
// them out; the caller adds up what cells return in a fixed order. A term of weight zero is left out (its NaN reaches
// neither loss nor gradient). A score of 0/0 counts as 1 and has no gradient.
namespace dice_ce_loss {

SEGOPS_HOST_DEVICE inline int64_t rows(const DiceCeLossValue& p) { return p.batch_dice ? 1 : p.batch; }

SEGOPS_HOST_DEVICE inline double overlap_sum(const DiceCeLossValue& p, int64_t row, int which, int64_t c) {
  if (!p.batch_dice) return p.overlap[(row * 3 + which) * p.classes + c];
  double total = 0;
  for (int64_t n = 0; n < p.batch; ++n) total += p.overlap[(n * 3 + which) * p.classes + c];
  return total;
}

// Whether a cell is part of the mean.
SEGOPS_HOST_DEVICE inline bool counts(const DiceCeLossValue& p, int64_t row, int64_t c) {
  return (c > 0 || p.include_background) && (!p.skip_absent || overlap_sum(p, row, 2, c) > 0);
}

// What a counted cell weighs. With nothing to average, "skip" has no loss; otherwise the mean of nothing is NaN, as in
// torch.
SEGOPS_HOST_DEVICE inline double share_of(const DiceCeLossValue& p, int64_t counted) {
  return counted == 0 && p.skip_absent ? 0.0 : 1.0 / static_cast<double>(counted);
}

// Writes the score and the derivatives of one cell; returns its share of the Dice term.
SEGOPS_HOST_DEVICE inline double cell(const DiceCeLossValue& p, int64_t row, int64_t c, double share) {
  const double i = overlap_sum(p, row, 0, c), t = overlap_sum(p, row, 2, c);
  const double num = p.num_i * i + p.smooth;
  const double den = p.den_i * i + p.den_p * overlap_sum(p, row, 1, c) + p.den_t * t + p.smooth;
  const double score = den == 0 ? 1.0 : num / den;
  p.scores[row * p.classes + c] = score;
  const bool counted = counts(p, row, c);
  const double weight = share * (p.dice_class_weight ? p.dice_class_weight[c] : 1.0);
  const bool differentiable = counted && den != 0 && p.dice_weight != 0;
  // Not by den * den, which may be too small for a double.
  const double scale = differentiable ? p.dice_weight * weight / den : 0.0;
  for (int64_t n = p.batch_dice ? 0 : row; n < (p.batch_dice ? p.batch : row + 1); ++n) {
    double* grad = p.grad_overlap + n * 3 * p.classes + c;
    grad[0] = differentiable ? scale * (score * p.den_i - p.num_i) : 0.0;
    grad[p.classes] = differentiable ? scale * score * p.den_p : 0.0;
    grad[2 * p.classes] = 0;
  }
  return counted ? weight * (1.0 - score) : 0.0;
}

// The loss from the cells' total.
SEGOPS_HOST_DEVICE inline void finish(const DiceCeLossValue& p, double dice, int64_t counted) {
  if (p.with_overlap && counted == 0) dice = share_of(p, counted) * 0.0;  // infinity * 0: the mean of nothing
  const double ce = p.ce_mean ? p.ce[0] / p.ce[1] : p.ce[0];
  p.grad_ce[0] = p.ce_weight != 0 ? (p.ce_mean ? p.ce_weight / p.ce[1] : p.ce_weight) : 0.0;
  p.grad_ce[1] = 0;
  p.parts[0] = ce;
  p.parts[1] = dice;
  double loss = p.ce_weight != 0 ? p.ce_weight * ce : 0.0;
  if (p.with_overlap && p.dice_weight != 0) loss += p.dice_weight * dice;
  *p.loss = loss;
}

}  // namespace dice_ce_loss

// All of it in one thread.
inline void dice_ce_loss_value(const DiceCeLossValue& p) {
  using namespace dice_ce_loss;
  int64_t counted = 0;
  double dice = 0;
  if (p.with_overlap) {
    for (int64_t row = 0; row < rows(p); ++row)
      for (int64_t c = 0; c < p.classes; ++c) counted += counts(p, row, c);
    for (int64_t row = 0; row < rows(p); ++row)
      for (int64_t c = 0; c < p.classes; ++c) dice += cell(p, row, c, share_of(p, counted));
  }
  finish(p, dice, counted);
}

}  // namespace segops
