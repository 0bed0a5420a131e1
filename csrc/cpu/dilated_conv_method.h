// Which convolutions go through Winograd's algorithm on a CPU: the rule that the binding asks. Free of torch and the STL.
#pragma once
#include "segops/dilated_conv.h"

namespace segops {

inline bool winograd_applies(const ConvWindow& w, int64_t groups) {
  return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && groups == 1;
}

enum class ConvMethod : int32_t { aten, winograd2, winograd4 };

inline ConvMethod conv_method(Dtype, const ConvWindow&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool) {
  return ConvMethod::aten;
}

}  // namespace segops
