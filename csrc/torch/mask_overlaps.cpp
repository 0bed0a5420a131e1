// Binding of mask_overlaps, which segops/metrics/mask_overlaps.py calls with arguments that its callers have checked.
#ifndef SEGOPS_DEVICE_KERNELS
#include "segops/mask_overlaps.h"

#include <tuple>

#include "tensor.h"

namespace segops {
Status mask_overlaps(const MaskOverlaps&, const Parallel&);
}

namespace segops::binding {
namespace {

constexpr const char* kOverlaps = "mask_overlaps";

std::tuple<Tensor, Tensor, Tensor> count_common(const Tensor& detections, const Tensor& objects) {
  for (const Tensor* t : {&detections, &objects})
    check(t->dim() == 2 && t->scalar_type() == ScalarType::Byte, "segops.", kOverlaps,
          ": masks must be uint8 [K, pixels], got ", to_text(sizes_of(*t)));
  check(detections.size(1) == objects.size(1), "segops.", kOverlaps, ": masks must have as many pixels, got ",
        to_text(sizes_of(detections)), " and ", to_text(sizes_of(objects)));
  check_device(objects, detections, kOverlaps, "objects");
  const Tensor some = torch::stable::contiguous(detections), others = torch::stable::contiguous(objects);
  MaskOverlaps p{};
  p.detections = static_cast<const uint8_t*>(some.const_data_ptr());
  p.objects = static_cast<const uint8_t*>(others.const_data_ptr());
  p.detection_count = some.size(0);
  p.object_count = others.size(0);
  p.pixels = some.size(1);
  Tensor both = empty({p.detection_count, p.object_count}, ScalarType::Double, detections);
  Tensor areas = empty({p.detection_count}, ScalarType::Double, detections);
  Tensor object_areas = empty({p.object_count}, ScalarType::Double, detections);
  p.both = static_cast<double*>(both.mutable_data_ptr());
  p.detection_areas = static_cast<double*>(areas.mutable_data_ptr());
  p.object_areas = static_cast<double*>(object_areas.mutable_data_ptr());
  check(mask_overlaps(p, threads()), kOverlaps);
  return {both, areas, object_areas};
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("mask_overlaps", TORCH_BOX(&segops::binding::count_common));
}
#endif
