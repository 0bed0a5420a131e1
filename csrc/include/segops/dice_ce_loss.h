// Contract of dice_ce_loss: softmax-Dice and weighted cross-entropy from one read of the logits.
//
// Three steps, each an operator of its own:
//   statistics  logits, target -> per image and class the overlap sums I, P, T, and the sums of the cross-entropy
//   value       sums -> loss, and the derivative of the loss with respect to each sum (O(N C) scalar maths, here)
//   backward    logits, target, those derivatives -> gradient of the logits
// Between statistics and value the sums of several ranks may be added.
#pragma once
#include "segops/types.h"

#ifdef __CUDACC__
#define SEGOPS_HOST_DEVICE __host__ __device__
#else
#define SEGOPS_HOST_DEVICE
#endif

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
  const double* grad_ce;       // [2]: derivative with respect to the sum of pixel losses; the second is not used
  void* grad_logits;           // same type and strides as logits
  int64_t grad_stride_n, grad_stride_c, grad_stride_s;
};

// Score = (i * I + smooth) / (den_i * I + den_p * P + den_t * T + smooth) covers every overlap:
//   dice (2; 0, 1, 1), jaccard (1; -1, 1, 1), tversky (1; 1 - alpha - beta, alpha, beta).
struct DiceCeLossValue {
  int64_t batch, classes;
  const double* overlap;            // [N, 3, C] or null: no overlap term
  const double* ce;                 // [2]
  const double* dice_class_weight;  // [C] or null
  double num_i, den_i, den_p, den_t, smooth;
  double ce_weight, dice_weight;
  bool batch_dice, include_background, skip_absent, ce_mean;
  double* loss;          // [1]
  double* parts;         // [2]: ce, dice
  double* scores;        // [N or 1, C], or null where overlap is null
  double* grad_overlap;  // [N, 3, C], or null
  double* grad_ce;       // [2]
};

namespace detail {

// Sums of image n, or of the whole batch when the images are pooled.
SEGOPS_HOST_DEVICE inline double overlap_sum(const DiceCeLossValue& p, int64_t n, int which, int64_t c) {
  if (!p.batch_dice) return p.overlap[(n * 3 + which) * p.classes + c];
  double total = 0;
  for (int64_t i = 0; i < p.batch; ++i) total += p.overlap[(i * 3 + which) * p.classes + c];
  return total;
}

}  // namespace detail

// The scalar maths of the loss and its derivatives, the same lines for host and device. A term of weight zero is left out
// (its NaN does not reach the loss). A score of 0/0 counts as 1 and has no gradient.
SEGOPS_HOST_DEVICE inline void dice_ce_loss_value(const DiceCeLossValue& p) {
  const double ce = p.ce_mean ? p.ce[0] / p.ce[1] : p.ce[0];
  double loss = p.ce_weight != 0 ? p.ce_weight * ce : 0.0;
  p.grad_ce[0] = p.ce_weight != 0 ? (p.ce_mean ? p.ce_weight / p.ce[1] : p.ce_weight) : 0.0;
  p.grad_ce[1] = 0;
  double dice = 0;
  if (p.overlap) {
    const int64_t rows = p.batch_dice ? 1 : p.batch;
    const int64_t first = p.include_background ? 0 : 1;
    int64_t counted = 0;
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t c = first; c < p.classes; ++c) counted += !p.skip_absent || detail::overlap_sum(p, n, 2, c) > 0;
    // With nothing to average, "skip" has no loss; otherwise the mean of nothing is NaN, as in torch.
    const double share = counted == 0 && p.skip_absent ? 0.0 : 1.0 / static_cast<double>(counted);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = 0; c < p.classes; ++c) {
        const double i = detail::overlap_sum(p, n, 0, c);
        const double t = detail::overlap_sum(p, n, 2, c);
        const double num = p.num_i * i + p.smooth;
        const double den = p.den_i * i + p.den_p * detail::overlap_sum(p, n, 1, c) + p.den_t * t + p.smooth;
        const double score = den == 0 ? 1.0 : num / den;
        p.scores[n * p.classes + c] = score;
        const bool counts = c >= first && (!p.skip_absent || t > 0);
        const double weight = counts ? share * (p.dice_class_weight ? p.dice_class_weight[c] : 1.0) : 0.0;
        if (counts) dice += weight * (1.0 - score);
        const double scale = counts && den != 0 ? p.dice_weight * weight / (den * den) : 0.0;
        for (int64_t image = p.batch_dice ? 0 : n; image < (p.batch_dice ? p.batch : n + 1); ++image) {
          double* grad = p.grad_overlap + image * 3 * p.classes + c;
          grad[0] = counts && den != 0 ? scale * (num * p.den_i - p.num_i * den) : 0.0;
          grad[p.classes] = counts && den != 0 ? scale * num * p.den_p : 0.0;
          grad[2 * p.classes] = 0;
        }
      }
    }
    if (counted == 0 && !p.skip_absent) dice = share * 0.0;  // inf * 0: the mean of nothing
    if (p.dice_weight != 0) loss += p.dice_weight * dice;
  }
  *p.loss = loss;
  p.parts[0] = ce;
  p.parts[1] = dice;
}

}  // namespace segops
