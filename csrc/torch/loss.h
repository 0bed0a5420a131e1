// What the bindings of the losses have in common.
#pragma once
#include "segops/planes.h"
#include "tensor.h"

namespace segops::binding {

inline ScalarType accumulation_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline const double* table(const std::optional<Tensor>& t, int64_t elements, const char* op, const char* name,
                           const Tensor& like) {
  if (!t) return nullptr;
  check_device(*t, like, op, name);
  check(t->scalar_type() == ScalarType::Double && t->is_contiguous() && t->numel() == elements, "segops.", op, ": ", name,
        " must be a contiguous float64 tensor of ", elements, " elements, got ", to_text(*t));
  return static_cast<const double*>(t->const_data_ptr());
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(torch::stable::contiguous(*t)) : std::nullopt;
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

}  // namespace segops::binding
