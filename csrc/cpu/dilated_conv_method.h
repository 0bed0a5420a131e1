// Which convolutions go through Winograd's algorithm on a CPU: the rule that the binding asks. Free of torch and the STL.
#pragma once
#include "segops/dilated_conv.h"

namespace segops {

enum class ConvMethod : int32_t { aten, winograd2, winograd4 };

inline ConvMethod conv_method(Dtype, const ConvWindow&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool) {
  return ConvMethod::aten;
}

}  // namespace segops
