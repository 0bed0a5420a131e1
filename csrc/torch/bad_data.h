// What an op does with labels or indices that are out of range, besides recording them: the argument `on_bad` of its schema.
#pragma once
#include "segops/types.h"

namespace segops {

constexpr int64_t kRecordBad = 0;  // leave it at the record; the caller reads it
constexpr int64_t kCountBad = 1;   // add to the process-wide count
constexpr int64_t kRaiseBad = 2;   // raise, where nobody reads the record (inside a compiled graph)

SEGOPS_EXPORT void count_bad_data(int64_t elements);
SEGOPS_EXPORT int64_t take_bad_data_count();  // the count since the last call

}  // namespace segops
