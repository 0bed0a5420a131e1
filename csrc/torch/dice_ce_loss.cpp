// Binding of dice_ce_loss: checks what memory safety needs, allocates, launches. Messages for users come from
// segops/ops/dice_ce_loss.py, which sees the arguments first.
#include <cmath>
#include <tuple>

#include "bad_data.h"
#include "loss.h"
#include "segops/dice_ce_loss_coarse.h"
#include "segops/messages.h"
#include "tensor.h"

namespace segops {
Status dice_ce_loss_statistics(const DiceCeLossStatistics&, const Parallel&);
Status dice_ce_loss_backward(const DiceCeLossBackward&, const Parallel&);
Status dice_ce_loss_coarse_statistics(const DiceCeLossCoarseStatistics&, const Parallel&);
Status dice_ce_loss_coarse_backward(const DiceCeLossCoarseBackward&, const Parallel&);
}  // namespace segops

namespace segops::binding {
namespace {

constexpr const char* kOp = "dice_ce_loss";

// Runs this library's kernels on what the params point to; `on` tells the device.
#ifdef SEGOPS_DEVICE_KERNELS
void launch(const DiceCeLossStatistics& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::dice_ce_loss_scratch_bytes(p.in), on);
  check(cuda::dice_ce_loss_statistics(p, scratch.mutable_data_ptr(), queue.stream()), kOp);
}
void launch(const DiceCeLossValue& p, const Tensor& on) { check(cuda::dice_ce_loss_value(p, Queue(on).stream()), kOp); }
void launch(const DiceCeLossBackward& p, const Tensor& on) {
  check(cuda::dice_ce_loss_backward(p, Queue(on).stream()), kOp);
}
void launch(const DiceCeLossCoarseStatistics& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::dice_ce_loss_coarse_scratch_bytes(p), on);
  check(cuda::dice_ce_loss_coarse_statistics(p, scratch.mutable_data_ptr(), queue.stream()), kOp);
}
void launch(const DiceCeLossCoarseBackward& p, const Tensor& on) {
  check(cuda::dice_ce_loss_coarse_backward(p, Queue(on).stream()), kOp);
}
#else
void launch(const DiceCeLossStatistics& p, const Tensor&) { check(dice_ce_loss_statistics(p, threads()), kOp); }
void launch(const DiceCeLossValue& p, const Tensor&) { dice_ce_loss_value(p); }
void launch(const DiceCeLossBackward& p, const Tensor&) { check(dice_ce_loss_backward(p, threads()), kOp); }
void launch(const DiceCeLossCoarseStatistics& p, const Tensor&) { check(dice_ce_loss_coarse_statistics(p, threads()), kOp); }
void launch(const DiceCeLossCoarseBackward& p, const Tensor&) { check(dice_ce_loss_coarse_backward(p, threads()), kOp); }
#endif

// Owns the contiguous copies that the pointers in `in` may point into.
struct Inputs {
  Pixels logits;
  Tensor target;
  std::optional<Tensor> pixel_weight;
  DiceCeLossInputs in;
};

Inputs inputs_of(const Tensor& logits, const Tensor& target, const std::vector<int64_t>& labels,
                 const std::optional<Tensor>& weight, const std::optional<Tensor>& pixel_weight, int64_t ignore_index,
                 double label_smoothing, bool squared) {
  check(sizes_of(target) == labels, "segops.", kOp, ": target must be ", to_text(labels), ", got ", to_text(target));
  check(logits.size(1) > 0, "segops.", kOp, ": logits must have at least one class");
#ifdef SEGOPS_DEVICE_KERNELS
  check(logits.size(1) <= cuda::kDiceCeLossMostClasses, "segops.", kOp, ": logits must have at most ",
        cuda::kDiceCeLossMostClasses, " classes for the CUDA kernels, got ", logits.size(1));
#endif
  check_on_device(logits, kOp, "logits");
  check_device(target, logits, kOp, "target");
  Inputs r{as_pixels(logits), torch::stable::contiguous(target), std::nullopt, {}};
  if (pixel_weight) {
    check_device(*pixel_weight, logits, kOp, "pixel_weight");
    check(sizes_of(*pixel_weight) == labels && pixel_weight->scalar_type() == accumulation_type(logits), "segops.", kOp,
          ": pixel_weight must be ", to_text(labels), " in the accumulation dtype");
    r.pixel_weight = torch::stable::contiguous(*pixel_weight);
  }
  r.in.logits = r.logits.tensor.const_data_ptr();
  r.in.logits_dtype = floating_dtype(logits, kOp, "logits");
  r.in.batch = r.logits.batch;
  r.in.classes = r.logits.classes;
  r.in.pixels = r.logits.pixels;
  r.in.stride_n = r.logits.stride_n;
  r.in.stride_c = r.logits.stride_c;
  r.in.stride_s = r.logits.stride_s;
  r.in.target = r.target.const_data_ptr();
  r.in.target_dtype = dtype_of(target, kOp, "target");
  check(r.in.target_dtype >= Dtype::uint8, "segops.", kOp, ": target must be uint8, int16, int32 or int64");
  r.in.weight = table(weight, r.in.classes, kOp, "weight", logits);
  r.in.pixel_weight = r.pixel_weight ? r.pixel_weight->const_data_ptr() : nullptr;
  r.in.ignore_index = ignore_index;
  r.in.label_smoothing = label_smoothing;
  r.in.squared = squared;
  return r;
}

Inputs inputs_of(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                 const std::optional<Tensor>& pixel_weight, int64_t ignore_index, double label_smoothing, bool squared) {
  check(logits.dim() >= 3, "segops.", kOp, ": logits must be [N, C, *spatial], got ", to_text(logits));
  std::vector<int64_t> labels = sizes_of(logits);
  labels.erase(labels.begin() + 1);
  return inputs_of(logits, target, labels, weight, pixel_weight, ignore_index, label_smoothing, squared);
}

// Inputs whose pixels are those of the target.
Inputs coarse_inputs_of(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& pixel_weight, int64_t ignore_index, double label_smoothing,
                        bool squared) {
  check(logits.dim() == 4 && target.dim() == 3, "segops.", kOp,
        ": coarse logits must be [N, C, h, w] with target [N, H, W], got ", to_text(logits), " and ", to_text(target));
  check_coarse(logits, target.size(1), target.size(2), kOp, target);
  Inputs r = inputs_of(logits, target, {logits.size(0), target.size(1), target.size(2)}, weight, pixel_weight, ignore_index,
                       label_smoothing, squared);
  r.in.logits = nullptr;
  r.in.pixels = target.size(1) * target.size(2);
  r.in.stride_n = r.in.stride_c = r.in.stride_s = 0;
  return r;
}

using Sums = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Allocates the results of `statistics`, has them written by run(params), and reports bad labels.
template <class Run>
Sums statistics_of(const Inputs& inputs, const Tensor& logits, const Tensor& target, bool with_overlap, bool with_confusion,
                   bool with_map, int64_t on_bad, const Run& run) {
  const int64_t n = inputs.in.batch, c = inputs.in.classes;
  Tensor overlap = empty_if(with_overlap, {n, 3, c}, ScalarType::Double, logits);
  Tensor ce = empty({2}, ScalarType::Double, logits);
  Tensor map = empty_if(with_map, sizes_of(target), accumulation_type(logits), logits);
  Tensor confusion = empty_if(with_confusion, {c, c}, ScalarType::Long, logits);
  Tensor errors = empty({kBadDataFields}, ScalarType::Long, logits);
  if (with_confusion) torch::stable::zero_(confusion);

  DiceCeLossStatistics p{};
  p.in = inputs.in;
  p.overlap = with_overlap ? static_cast<double*>(overlap.mutable_data_ptr()) : nullptr;
  p.ce = static_cast<double*>(ce.mutable_data_ptr());
  p.ce_map = with_map ? map.mutable_data_ptr() : nullptr;
  p.confusion = with_confusion ? static_cast<int64_t*>(confusion.mutable_data_ptr()) : nullptr;
  p.bad_labels = static_cast<BadData*>(errors.mutable_data_ptr());
  run(p);
  report_bad_data(errors, on_bad, [&](const BadData& bad) {
    return describe_bad_labels(kOp, bad, sizes_of(target), c, inputs.in.ignore_index);
  });
  return {overlap, ce, map, confusion, errors};
}

Sums statistics(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                const std::optional<Tensor>& pixel_weight, int64_t ignore_index, double label_smoothing, bool squared,
                bool with_overlap, bool with_confusion, bool with_map, int64_t on_bad) {
  const Inputs inputs = inputs_of(logits, target, weight, pixel_weight, ignore_index, label_smoothing, squared);
  return statistics_of(inputs, logits, target, with_overlap, with_confusion, with_map, on_bad,
                       [&](const DiceCeLossStatistics& p) { launch(p, logits); });
}

Sums coarse_statistics(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& pixel_weight, int64_t ignore_index, double label_smoothing, bool squared,
                       bool with_overlap, bool with_confusion, bool with_map, int64_t on_bad, bool align_corners) {
  const Inputs inputs = coarse_inputs_of(logits, target, weight, pixel_weight, ignore_index, label_smoothing, squared);
  const CoarseLogits coarse = coarse_of(inputs.logits, target.size(1), target.size(2), align_corners);
  return statistics_of(inputs, logits, target, with_overlap, with_confusion, with_map, on_bad,
                       [&](const DiceCeLossStatistics& p) { launch(DiceCeLossCoarseStatistics{p, coarse}, logits); });
}

// What both backwards start from.
DiceCeLossBackward backward_of(const Inputs& inputs, std::optional<Tensor>& grad_overlap, std::optional<Tensor>& grad_ce,
                               const Tensor& logits) {
  DiceCeLossBackward p{};
  p.in = inputs.in;
  p.grad_overlap = gradient_table(grad_overlap, p.in.batch * 3 * p.in.classes, kOp, "grad_overlap", logits);
  p.grad_ce = gradient_table(grad_ce, 2, kOp, "grad_ce", logits);
  return p;
}

Tensor backward(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                const std::optional<Tensor>& pixel_weight, std::optional<Tensor> grad_overlap, std::optional<Tensor> grad_ce,
                int64_t ignore_index, double label_smoothing, bool squared) {
  const Inputs inputs = inputs_of(logits, target, weight, pixel_weight, ignore_index, label_smoothing, squared);
  return gradient_of(backward_of(inputs, grad_overlap, grad_ce, logits), logits, inputs.logits,
                     [&](const DiceCeLossBackward& p) { launch(p, logits); });
}

Tensor coarse_backward(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                       const std::optional<Tensor>& pixel_weight, std::optional<Tensor> grad_overlap,
                       std::optional<Tensor> grad_ce, int64_t ignore_index, double label_smoothing, bool squared,
                       bool align_corners) {
  const Inputs inputs = coarse_inputs_of(logits, target, weight, pixel_weight, ignore_index, label_smoothing, squared);
  DiceCeLossCoarseBackward p{};
  p.loss = backward_of(inputs, grad_overlap, grad_ce, logits);
  p.coarse = coarse_of(inputs.logits, target.size(1), target.size(2), align_corners);
  return coarse_gradient_of(p, logits, inputs.logits, [&](const DiceCeLossCoarseBackward& q) { launch(q, logits); });
}

Sums value(const Tensor& overlap, const Tensor& ce, const std::optional<Tensor>& dice_class_weight, double num_i,
           double den_i, double den_p, double den_t, double smooth, double ce_weight, double dice_weight, bool batch_dice,
           bool include_background, bool skip_absent, bool ce_mean) {
  const bool with_overlap = overlap.dim() == 3;
  check(!with_overlap || overlap.size(1) == 3, "segops.", kOp, ": overlap must be [N, 3, C], got ", to_text(overlap));
  DiceCeLossValue p{};
  p.with_overlap = with_overlap;
  p.batch = with_overlap ? overlap.size(0) : 0;
  p.classes = with_overlap ? overlap.size(2) : 0;
  Tensor loss = empty({}, ScalarType::Double, overlap);
  Tensor parts = empty({2}, ScalarType::Double, overlap);
  Tensor scores = empty({batch_dice && with_overlap ? 1 : p.batch, p.classes}, ScalarType::Double, overlap);
  Tensor grad_overlap = empty(sizes_of(overlap), ScalarType::Double, overlap);
  Tensor grad_ce = empty({2}, ScalarType::Double, overlap);
  p.overlap = with_overlap ? table(overlap, overlap.numel(), kOp, "overlap", overlap) : nullptr;
  p.ce = table(ce, 2, kOp, "ce", overlap);
  p.dice_class_weight = table(dice_class_weight, p.classes, kOp, "dice_class_weight", overlap);
  p.num_i = num_i;
  p.den_i = den_i;
  p.den_p = den_p;
  p.den_t = den_t;
  p.smooth = smooth;
  p.ce_weight = ce_weight;
  p.dice_weight = dice_weight;
  p.batch_dice = batch_dice;
  p.include_background = include_background;
  p.skip_absent = skip_absent;
  p.ce_mean = ce_mean;
  p.loss = static_cast<double*>(loss.mutable_data_ptr());
  p.parts = static_cast<double*>(parts.mutable_data_ptr());
  p.scores = static_cast<double*>(scores.mutable_data_ptr());
  p.grad_overlap = static_cast<double*>(grad_overlap.mutable_data_ptr());
  p.grad_ce = static_cast<double*>(grad_ce.mutable_data_ptr());
  launch(p, overlap);
  return {loss, parts, scores, grad_overlap, grad_ce};
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("dice_ce_loss_statistics", TORCH_BOX(&segops::binding::statistics));
  m.impl("dice_ce_loss_value", TORCH_BOX(&segops::binding::value));
  m.impl("dice_ce_loss_backward", TORCH_BOX(&segops::binding::backward));
  m.impl("dice_ce_loss_coarse_statistics", TORCH_BOX(&segops::binding::coarse_statistics));
  m.impl("dice_ce_loss_coarse_backward", TORCH_BOX(&segops::binding::coarse_backward));
}
