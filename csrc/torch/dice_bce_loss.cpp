// Binding of dice_bce_loss: checks what memory safety needs, allocates, launches. Messages for users come from
// segops/ops/dice_bce_loss.py, which sees the arguments first.
#include "segops/dice_bce_loss.h"

#include <cmath>
#include <tuple>

#include "bad_data.h"
#include "loss.h"
#include "segops/messages.h"
#include "tensor.h"

namespace segops {
Status dice_bce_loss_statistics(const DiceBceLossStatistics&, const Parallel&);
Status dice_bce_loss_backward(const DiceBceLossBackward&, const Parallel&);
Status dice_bce_loss_coarse_statistics(const DiceBceLossCoarseStatistics&, const Parallel&);
Status dice_bce_loss_coarse_backward(const DiceBceLossCoarseBackward&, const Parallel&);
}  // namespace segops

namespace segops::binding {
namespace {

constexpr const char* kOp = "dice_bce_loss";

// Runs this library's kernels on what the params point to; `on` tells the device.
#ifdef SEGOPS_DEVICE_KERNELS
void launch(const DiceBceLossStatistics& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::dice_bce_loss_scratch_bytes(p), on);
  check(cuda::dice_bce_loss_statistics(p, scratch.mutable_data_ptr(), queue.stream()), kOp);
}
void launch(const DiceBceLossBackward& p, const Tensor& on) {
  check(cuda::dice_bce_loss_backward(p, Queue(on).stream()), kOp);
}
void launch(const DiceBceLossCoarseStatistics& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::dice_bce_loss_coarse_scratch_bytes(p), on);
  check(cuda::dice_bce_loss_coarse_statistics(p, scratch.mutable_data_ptr(), queue.stream()), kOp);
}
void launch(const DiceBceLossCoarseBackward& p, const Tensor& on) {
  check(cuda::dice_bce_loss_coarse_backward(p, Queue(on).stream()), kOp);
}
#else
void launch(const DiceBceLossStatistics& p, const Tensor&) { check(dice_bce_loss_statistics(p, threads()), kOp); }
void launch(const DiceBceLossBackward& p, const Tensor&) { check(dice_bce_loss_backward(p, threads()), kOp); }
void launch(const DiceBceLossCoarseStatistics& p, const Tensor&) {
  check(dice_bce_loss_coarse_statistics(p, threads()), kOp);
}
void launch(const DiceBceLossCoarseBackward& p, const Tensor&) { check(dice_bce_loss_coarse_backward(p, threads()), kOp); }
#endif

Elements elements_of(const Pixels& p) { return {p.tensor.const_data_ptr(), p.stride_n, p.stride_c, p.stride_s}; }

// A tensor of elements that kernels can read, planar or channels last: as it is, or through one copy. Those of a device need
// the layout of the logits.
Pixels in_layout(const Tensor& t, [[maybe_unused]] bool planar) {
  const Pixels p = as_pixels(t);
#ifdef SEGOPS_DEVICE_KERNELS
  if (planar ? p.stride_s == 1 : p.stride_c == 1) return p;
  if (planar) return as_pixels(torch::stable::contiguous(t));
  Tensor copy = empty_like_pixels(t, Pixels{t, 0, 0, 0, 0, 1, 0});
  torch::stable::copy_(copy, t);
  return as_pixels(copy);
#else
  return p;
#endif
}

// Owns the copies that the pointers in `in` may point into.
struct Inputs {
  Pixels logits, target;
  std::optional<Pixels> pixel_weight;
  DiceBceLossInputs in;
};

// Target and weights are laid out as `planar` says.
Inputs inputs_of(const Tensor& logits, const Tensor& target, bool planar, const std::optional<Tensor>& pos_weight,
                 const std::optional<Tensor>& pixel_weight, std::optional<int64_t> ignore_index, double focal_gamma,
                 bool squared) {
  check(logits.size(1) > 0, "segops.", kOp, ": logits must have at least one channel");
  check(focal_gamma >= 0 && std::isfinite(focal_gamma), "segops.", kOp, ": focal_gamma must be finite and >= 0, got ",
        focal_gamma);
  check_on_device(logits, kOp, "logits");
  check_device(target, logits, kOp, "target");
  Inputs r{as_pixels(logits), in_layout(target, planar), std::nullopt, {}};
  r.in.logits = elements_of(r.logits);
  r.in.logits_dtype = floating_dtype(logits, kOp, "logits");
  r.in.batch = r.target.batch;
  r.in.channels = r.target.classes;
  r.in.pixels = r.target.pixels;
  r.in.target = elements_of(r.target);
  r.in.target_dtype = dtype_of(target, kOp, "target");
  check(r.in.target_dtype <= Dtype::uint8, "segops.", kOp, ": target must be uint8 or floating point");
  r.in.pos_weight = table(pos_weight, r.in.channels, kOp, "pos_weight", logits);
  if (pixel_weight) {
    check_device(*pixel_weight, logits, kOp, "pixel_weight");
    std::vector<int64_t> each = sizes_of(target), one = each;
    one[1] = 1;
    const bool per_pixel = r.in.channels > 1 && sizes_of(*pixel_weight) == one;
    check((per_pixel || sizes_of(*pixel_weight) == each) && pixel_weight->scalar_type() == accumulation_type(logits),
          "segops.", kOp, ": pixel_weight must be ", to_text(each), " or ", to_text(one), " in the accumulation dtype");
    r.pixel_weight = in_layout(*pixel_weight, planar || per_pixel);
    r.in.pixel_weight = elements_of(*r.pixel_weight);
    if (per_pixel) r.in.pixel_weight.stride_c = 0;
  }
  r.in.ignores = ignore_index.has_value();
  r.in.ignore_index = ignore_index.value_or(0);
  r.in.focal_gamma = focal_gamma;
  r.in.squared = squared;
  return r;
}

Inputs inputs_of(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& pos_weight,
                 const std::optional<Tensor>& pixel_weight, std::optional<int64_t> ignore_index, double focal_gamma,
                 bool squared) {
  check(logits.dim() >= 3 && sizes_of(target) == sizes_of(logits), "segops.", kOp,
        ": logits must be [N, C, *spatial] and target of its shape, got ", to_text(logits), " and ", to_text(target));
  return inputs_of(logits, target, as_pixels(logits).planar(), pos_weight, pixel_weight, ignore_index, focal_gamma, squared);
}

// Inputs whose pixels are those of the target.
Inputs coarse_inputs_of(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& pos_weight,
                        const std::optional<Tensor>& pixel_weight, std::optional<int64_t> ignore_index, double focal_gamma,
                        bool squared) {
  check(logits.dim() == 4 && target.dim() == 4 && target.size(0) == logits.size(0) && target.size(1) == logits.size(1),
        "segops.", kOp, ": coarse logits must be [N, C, h, w] with target [N, C, H, W], got ", to_text(logits), " and ",
        to_text(target));
  check_coarse(logits, target.size(2), target.size(3), kOp, target);
  Inputs r = inputs_of(logits, target, true, pos_weight, pixel_weight, ignore_index, focal_gamma, squared);
  r.in.logits = {};
  return r;
}

using Sums = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Allocates the results of `statistics`, a map in the layout of `like`; has them written by run(params), and reports bad
// labels.
template <class Run>
Sums statistics_of(const Inputs& inputs, const Tensor& logits, const Tensor& target, bool with_overlap, bool with_map,
                   const Pixels& like, int64_t on_bad, const Run& run) {
  const int64_t n = inputs.in.batch, c = inputs.in.channels;
  Tensor overlap = empty_if(with_overlap, {n, 3, c}, ScalarType::Double, logits);
  Tensor bce = empty({2}, ScalarType::Double, logits);
  Tensor map =
      with_map ? empty_like_pixels(target, like, accumulation_type(logits)) : empty({0}, accumulation_type(logits), logits);
  Tensor errors = empty({kBadDataFields}, ScalarType::Long, logits);

  DiceBceLossStatistics p{};
  p.in = inputs.in;
  p.overlap = with_overlap ? static_cast<double*>(overlap.mutable_data_ptr()) : nullptr;
  p.bce = static_cast<double*>(bce.mutable_data_ptr());
  if (with_map) {
    const Pixels of_map = as_pixels(map);
    p.bce_map = map.mutable_data_ptr();
    p.map_stride_n = of_map.stride_n;
    p.map_stride_c = of_map.stride_c;
    p.map_stride_s = of_map.stride_s;
  }
  p.bad_labels = static_cast<BadData*>(errors.mutable_data_ptr());
  run(p);
  const bool soft = inputs.in.target_dtype != Dtype::uint8;
  report_bad_data(errors, soft && on_bad == kRaiseBad ? kRaiseSoftBad : on_bad, [&](const BadData& bad) {
    return describe_bad_probabilities(kOp, bad, sizes_of(target), soft,
                                      inputs.in.ignores ? std::optional(inputs.in.ignore_index) : std::nullopt);
  });
  return {overlap, bce, map, errors};
}

Sums statistics(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& pos_weight,
                const std::optional<Tensor>& pixel_weight, std::optional<int64_t> ignore_index, double focal_gamma,
                bool squared, bool with_overlap, bool with_map, int64_t on_bad) {
  const Inputs inputs = inputs_of(logits, target, pos_weight, pixel_weight, ignore_index, focal_gamma, squared);
  return statistics_of(inputs, logits, target, with_overlap, with_map, inputs.logits, on_bad,
                       [&](const DiceBceLossStatistics& p) { launch(p, logits); });
}

Sums coarse_statistics(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& pos_weight,
                       const std::optional<Tensor>& pixel_weight, std::optional<int64_t> ignore_index, double focal_gamma,
                       bool squared, bool with_overlap, bool with_map, int64_t on_bad, bool align_corners) {
  const Inputs inputs = coarse_inputs_of(logits, target, pos_weight, pixel_weight, ignore_index, focal_gamma, squared);
  const Pixels planar{logits, 0, 0, 0, 0, 0, 1};
  const CoarseLogits coarse = coarse_of(inputs.logits, target.size(2), target.size(3), align_corners);
  return statistics_of(inputs, logits, target, with_overlap, with_map, planar, on_bad,
                       [&](const DiceBceLossStatistics& p) { launch(DiceBceLossCoarseStatistics{p, coarse}, logits); });
}

// What both backwards start from.
DiceBceLossBackward backward_of(const Inputs& inputs, std::optional<Tensor>& grad_overlap, std::optional<Tensor>& grad_bce,
                                const Tensor& logits) {
  DiceBceLossBackward p{};
  p.in = inputs.in;
  p.grad_overlap = gradient_table(grad_overlap, p.in.batch * 3 * p.in.channels, kOp, "grad_overlap", logits);
  p.grad_bce = gradient_table(grad_bce, 2, kOp, "grad_bce", logits);
  return p;
}

Tensor backward(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& pos_weight,
                const std::optional<Tensor>& pixel_weight, std::optional<Tensor> grad_overlap,
                std::optional<Tensor> grad_bce, std::optional<int64_t> ignore_index, double focal_gamma, bool squared) {
  const Inputs inputs = inputs_of(logits, target, pos_weight, pixel_weight, ignore_index, focal_gamma, squared);
  return gradient_of(backward_of(inputs, grad_overlap, grad_bce, logits), logits, inputs.logits,
                     [&](const DiceBceLossBackward& p) { launch(p, logits); });
}

Tensor coarse_backward(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& pos_weight,
                       const std::optional<Tensor>& pixel_weight, std::optional<Tensor> grad_overlap,
                       std::optional<Tensor> grad_bce, std::optional<int64_t> ignore_index, double focal_gamma, bool squared,
                       bool align_corners) {
  const Inputs inputs = coarse_inputs_of(logits, target, pos_weight, pixel_weight, ignore_index, focal_gamma, squared);
  DiceBceLossCoarseBackward p{};
  p.loss = backward_of(inputs, grad_overlap, grad_bce, logits);
  p.coarse = coarse_of(inputs.logits, target.size(2), target.size(3), align_corners);
  return coarse_gradient_of(p, logits, inputs.logits, [&](const DiceBceLossCoarseBackward& q) { launch(q, logits); });
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("dice_bce_loss_statistics", TORCH_BOX(&segops::binding::statistics));
  m.impl("dice_bce_loss_backward", TORCH_BOX(&segops::binding::backward));
  m.impl("dice_bce_loss_coarse_statistics", TORCH_BOX(&segops::binding::coarse_statistics));
  m.impl("dice_bce_loss_coarse_backward", TORCH_BOX(&segops::binding::coarse_backward));
}
