// Images as the operators on [N, C, H, W] see them. Free of torch.
#pragma once
#include "segops/types.h"

namespace segops {

// Element (n, c, h, w) at n * stride_n + c * stride_c + h * stride_h + w * stride_w, in elements, where stride_w == 1
// (planar) or stride_c == 1 (channels last). Rows need not touch: a slice of the channels or of the batch is one of these.
template <class Data>
struct PlanesOf {
  Data* data;
  int64_t batch, channels, height, width;  // N, C, H, W
  int64_t stride_n, stride_c, stride_h, stride_w;
};
using Planes = PlanesOf<void>;
using ConstPlanes = PlanesOf<const void>;

}  // namespace segops
