// Binding of saliency_maps, which segops/metrics/saliency_maps.py calls with arguments that its callers have checked.
#ifndef SEGOPS_DEVICE_KERNELS
#include "segops/saliency_maps.h"

#include "tensor.h"

namespace segops {
Status saliency_maps(const SaliencyMaps&, const Parallel&);
}

namespace segops::binding {
namespace {

constexpr const char* kMaps = "saliency_maps";

Tensor observe(const Tensor& prediction, const Tensor& target, const Tensor& nearness, bool normalize) {
  const std::vector<int64_t> sizes = sizes_of(prediction);
  check(sizes.size() == 3 && sizes[1] > 0 && sizes[2] > 0 && sizes[1] <= INT32_MAX / sizes[2], "segops.", kMaps,
        ": prediction must be [N, H, W] of 1 to 2^31 - 1 pixels, got ", to_text(sizes));
  check(sizes_of(target) == sizes, "segops.", kMaps, ": target must be ", to_text(sizes), ", got ",
        to_text(sizes_of(target)));
  check(target.scalar_type() == ScalarType::Byte, "segops.", kMaps, ": target must be uint8");
  check(nearness.scalar_type() == ScalarType::Double && nearness.dim() == 1 && nearness.is_contiguous() &&
            nearness.numel() >= kSaliencySquares,
        "segops.", kMaps, ": nearness must be a vector of ", kSaliencySquares, " numbers of float64");
  check_device(target, prediction, kMaps, "target");
  check_device(nearness, prediction, kMaps, "nearness");
  const Tensor maps = torch::stable::contiguous(prediction), masks = torch::stable::contiguous(target);
  Tensor observed = empty({sizes[0], kSaliencyFields}, ScalarType::Double, prediction);
  SaliencyMaps p{};
  p.prediction = maps.const_data_ptr();
  p.prediction_dtype = dtype_of(prediction, kMaps, "prediction");
  p.target = static_cast<const uint8_t*>(masks.const_data_ptr());
  p.nearness = static_cast<const double*>(nearness.const_data_ptr());
  p.maps = sizes[0];
  p.height = sizes[1];
  p.width = sizes[2];
  p.normalize = normalize;
  p.observed = static_cast<SaliencyObserved*>(observed.mutable_data_ptr());
  check(saliency_maps(p, threads()), kMaps);
  return observed;
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("saliency_maps", TORCH_BOX(&segops::binding::observe));
}
#endif
