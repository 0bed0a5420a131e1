// Tensors [N, C, H, W] as the kernels of the image operators see them (segops/planes.h).
#pragma once
#include "segops/planes.h"
#include "tensor.h"

namespace segops::binding {

inline void check_image(const Tensor& t, const char* op, const char* name) {
  check(t.dim() == 4, "segops.", op, ": ", name, " must be [N, C, H, W], got ", to_text(t));
  check_on_device(t, op, name);
}

// Whether a result that follows t is channels last: torch's suggest_memory_format, as the fakes in Python use it.
inline bool suggests_channels_last(const Tensor& t) {
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = t.stride(d) * (t.size(d) > 1 ? t.size(d) : 1);
  }
  return true;
}

// A tensor whose rows or whose pixels are dense as it is, anything else through one contiguous copy, which this owns.
struct Image {
  Tensor tensor;
  ConstPlanes planes;
};

template <class Data>
PlanesOf<Data> planes_of(Data* data, const Tensor& t) {
  PlanesOf<Data> p{data, t.size(0), t.size(1), t.size(2), t.size(3), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
  // The stride of a dimension of one element says nothing: kernels tell the layouts apart by a stride of 1.
  if (p.width == 1 && p.stride_c != 1) p.stride_w = 1;
  if (p.channels == 1 && p.stride_w != 1) p.stride_c = 1;
  return p;
}

inline Image as_image(const Tensor& t) {
  const ConstPlanes p = planes_of(t.const_data_ptr(), t);
  if (p.stride_w == 1 || p.stride_c == 1) return Image{t, p};
  const Tensor copy = torch::stable::contiguous(t);
  return Image{copy, planes_of(copy.const_data_ptr(), copy)};
}

// A floating-point image that has pixels, for a result of [height, width].
inline Image checked_image(const Tensor& t, const char* op, const char* name, int64_t height, int64_t width) {
  check_image(t, op, name);
  floating_dtype(t, op, name);
  check(t.size(2) > 0 && t.size(3) > 0, "segops.", op, ": ", name, " must have pixels, got ", to_text(t));
  check(height > 0 && width > 0, "segops.", op, ": the size must be at least 1 in each dimension, got ",
        to_text({height, width}));
  return as_image(t);
}

inline Planes planes_of(Tensor& t) { return planes_of(t.mutable_data_ptr(), t); }

// An uninitialised [n, c, h, w] on the device of `like`.
inline Tensor empty_image(int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last, ScalarType type,
                          const Tensor& like) {
  if (!channels_last) return empty({n, c, h, w}, type, like);
  return empty({n, c, h, w}, {h * w * c, 1, w * c, c}, type, like);
}

// Of the images and the type of `like`, laid out as a result that follows it.
inline Tensor result_like(const Tensor& like, int64_t c, int64_t h, int64_t w) {
  return empty_image(like.size(0), c, h, w, suggests_channels_last(like), like.scalar_type(), like);
}

}  // namespace segops::binding
