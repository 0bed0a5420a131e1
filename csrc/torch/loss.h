// What the bindings of the losses have in common.
#pragma once
#include "segops/interpolate.h"
#include "segops/planes.h"
#include "tensor.h"

namespace segops::binding {

inline const double* table(const std::optional<Tensor>& t, int64_t elements, const char* op, const char* name,
                           const Tensor& like) {
  if (!t) return nullptr;
  check_device(*t, like, op, name);
  check(t->scalar_type() == ScalarType::Double && t->is_contiguous() && t->numel() == elements, "segops.", op, ": ", name,
        " must be a contiguous float64 tensor of ", elements, " elements, got ", to_text(*t));
  return static_cast<const double*>(t->const_data_ptr());
}

// A table of derivatives, which autograd hands over expanded: t becomes the copy that is pointed into.
inline const double* gradient_table(std::optional<Tensor>& t, int64_t elements, const char* op, const char* name,
                                    const Tensor& like) {
  if (t) t = torch::stable::contiguous(*t);
  return table(t, elements, op, name, like);
}

// Images [N, C, H, W] as the operators on planes see them.
template <class Data>
PlanesOf<Data> planes_of(Data* data, const Pixels& p) {
  const int64_t h = p.tensor.size(2), w = p.tensor.size(3);
  return PlanesOf<Data>{data, p.batch, p.classes, h, w, p.stride_n, p.stride_c, w * p.stride_s, p.stride_s};
}

// Logits that may stand for their interpolation to height x width.
inline void check_coarse(const Tensor& logits, int64_t height, int64_t width, const char* op, const Tensor& target) {
  check(logits.size(2) > 0 && logits.size(2) <= height && logits.size(3) > 0 && logits.size(3) <= width, "segops.", op,
        ": coarse logits must have at least one pixel and no more than target in each dimension, got ", to_text(logits),
        " and ", to_text(target));
}

inline CoarseLogits coarse_of(const Pixels& logits, int64_t height, int64_t width, bool align_corners) {
  return {planes_of(logits.tensor.const_data_ptr(), logits), linear_axis(logits.tensor.size(2), height, align_corners, 0),
          linear_axis(logits.tensor.size(3), width, align_corners, 0)};
}

// A result that may not be wanted: empty then.
inline Tensor empty_if(bool wanted, const std::vector<int64_t>& sizes, ScalarType type, const Tensor& like) {
  return empty(wanted ? sizes : std::vector<int64_t>{0}, type, like);
}

// The gradient of logits of full size, in their layout: allocated, and written by run(p).
template <class Backward, class Run>
Tensor gradient_of(Backward p, const Tensor& logits, const Pixels& pixels, const Run& run) {
  Tensor grad_logits = empty_like_pixels(logits, pixels);
  const Pixels grad = as_pixels(grad_logits);
  p.grad_logits = grad_logits.mutable_data_ptr();
  p.grad_stride_n = grad.stride_n;
  p.grad_stride_c = grad.stride_c;
  p.grad_stride_s = grad.stride_s;
  p.warm = is_warm(grad_logits);
  run(p);
  return grad_logits;
}

// That of coarse logits.
template <class CoarseBackward, class Run>
Tensor coarse_gradient_of(CoarseBackward p, const Tensor& logits, const Pixels& pixels, const Run& run) {
  Tensor grad_logits = empty_like_pixels(logits, pixels);
  p.grad_logits = planes_of(grad_logits.mutable_data_ptr(), as_pixels(grad_logits));
  run(p);
  return grad_logits;
}

}  // namespace segops::binding
