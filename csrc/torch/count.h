// The count of bad labels and indices of CPU tensors in this process.
#pragma once
#include "segops/types.h"

namespace segops {

SEGOPS_EXPORT void count_bad_data(int64_t elements);
SEGOPS_EXPORT int64_t take_bad_data_count();  // the count since the last call

}  // namespace segops
