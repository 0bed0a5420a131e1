// Binding of confusion_matrix. Messages for users come from segops/ops/confusion_matrix.py, which sees the arguments first.
#include "segops/confusion_matrix.h"

#include <tuple>

#include "bad_data.h"
#include "segops/messages.h"
#include "tensor.h"

namespace segops {
Status confusion_matrix(const ConfusionMatrix&, const Parallel&);
}

namespace segops::binding {
namespace {

constexpr const char* kConfusion = "confusion_matrix";

#ifdef SEGOPS_DEVICE_KERNELS
void launch(const ConfusionMatrix& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::confusion_matrix_scratch_bytes(p), on);
  check(cuda::confusion_matrix(p, scratch.mutable_data_ptr(), queue.stream()), kConfusion);
}
#else
void launch(const ConfusionMatrix& p, const Tensor&) { check(confusion_matrix(p, threads()), kConfusion); }
#endif

std::tuple<Tensor, Tensor, Tensor> count(const Tensor& prediction, const Tensor& target, int64_t num_classes,
                                         bool has_ignore_index, int64_t ignore_index, int64_t on_bad) {
  check_on_device(target, kConfusion, "target");
  check_device(prediction, target, kConfusion, "prediction");
  ConfusionMatrix p{};
  p.prediction_dtype = dtype_of(prediction, kConfusion, "prediction");
  p.target_dtype = dtype_of(target, kConfusion, "target");
  const auto is_label = [](Dtype dtype) { return dtype >= Dtype::uint8 && dtype <= Dtype::int64; };
  check(is_label(p.target_dtype), "segops.", kConfusion, ": target must be uint8, int16, int32 or int64");
  check(p.of_logits() || is_label(p.prediction_dtype), "segops.", kConfusion,
        ": prediction must be floating point, uint8, int16, int32 or int64");
  check(num_classes > 0 && num_classes <= INT32_MAX, "segops.", kConfusion, ": num_classes must be positive, got ",
        num_classes);

  // Own the contiguous copies that the pointers may point into.
  const Tensor labels = torch::stable::contiguous(target);
  std::optional<Pixels> logits;
  std::optional<Tensor> classes;
  std::vector<int64_t> expected = sizes_of(prediction);
  if (p.of_logits()) {
    check(prediction.dim() >= 3 && prediction.size(1) == num_classes, "segops.", kConfusion,
          ": logits must be [N, num_classes, *spatial], got ", to_text(expected));
    expected.erase(expected.begin() + 1);
    logits = as_pixels(prediction);
    p.prediction = logits->tensor.const_data_ptr();
    p.batch = logits->batch;
    p.pixels = logits->pixels;
    p.stride_n = logits->stride_n;
    p.stride_c = logits->stride_c;
    p.stride_s = logits->stride_s;
  } else {
    classes = torch::stable::contiguous(prediction);
    p.prediction = classes->const_data_ptr();
    p.batch = 1;
    p.pixels = prediction.numel();
  }
  check(sizes_of(target) == expected, "segops.", kConfusion, ": target must be ", to_text(expected), ", got ",
        to_text(target));

  Tensor counts = empty({num_classes, num_classes}, ScalarType::Long, target);
  torch::stable::zero_(counts);
  Tensor bad_labels = empty({kBadDataFields}, ScalarType::Long, target);
  Tensor bad_predictions = empty({p.of_logits() ? 0 : kBadDataFields}, ScalarType::Long, target);
  p.classes = num_classes;
  p.target = labels.const_data_ptr();
  p.has_ignore_index = has_ignore_index;
  p.ignore_index = ignore_index;
  p.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  p.bad_labels = static_cast<BadData*>(bad_labels.mutable_data_ptr());
  if (!p.of_logits()) p.bad_predictions = static_cast<BadData*>(bad_predictions.mutable_data_ptr());
  launch(p, target);
  std::optional<int64_t> ignored;
  if (has_ignore_index) ignored = ignore_index;
  report_bad_data(bad_labels, on_bad, [&](const BadData& bad) {
    return describe_bad_labels(kConfusion, bad, sizes_of(target), num_classes, ignored, "target");
  });
  if (!p.of_logits())
    report_bad_data(bad_predictions, on_bad, [&](const BadData& bad) {
      return describe_bad_labels(kConfusion, bad, sizes_of(prediction), num_classes, std::nullopt, "prediction");
    });
  return {counts, bad_labels, bad_predictions};
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("confusion_matrix", TORCH_BOX(&segops::binding::count));
}
