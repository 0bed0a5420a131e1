// What an op does with labels or indices that are out of range, besides recording them: the argument `on_bad` of its schema.
#pragma once
#include "segops/types.h"
#include "tensor.h"

namespace segops {

constexpr int64_t kRecordBad = 0;  // leave it at the record; the caller reads it
constexpr int64_t kCountBad = 1;   // add to the count of the process, or of the device
constexpr int64_t kRaiseBad = 2;   // raise, where nobody reads the record (inside a compiled graph); a device keeps it for
                                   // segops.check_errors
constexpr int64_t kRaiseSoftBad = 3;  // no argument, but where a device keeps soft labels, whose values are bits of doubles

namespace binding {
// Adds a record, int64 [3], to the count; on a device also to what is to be raised.
void note_bad_data(const Tensor& record, int64_t on_bad);

// What a call does about the bad data of its record, int64 [3]. describe(bad): what it raises.
template <class Describe>
void report_bad_data(const Tensor& record, int64_t on_bad, const Describe& describe) {
  if (on_bad == kRecordBad) return;
  if (on_bad >= kRaiseBad && record.is_cpu()) {
    const BadData& bad = *static_cast<const BadData*>(record.const_data_ptr());
    if (bad.count > 0) fail(describe(bad));
  }
  note_bad_data(record, on_bad);
}
}  // namespace binding

}  // namespace segops
