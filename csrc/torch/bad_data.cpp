#include "bad_data.h"

#include "count.h"

namespace segops::binding {

#ifdef SEGOPS_DEVICE_KERNELS

void note_bad_data(const Tensor& record, int64_t on_bad) {
  const Queue queue(record);
  check(cuda::note_bad_data(static_cast<const BadData*>(record.const_data_ptr()), on_bad, queue.stream()), "note_bad_data");
}

// What the device of `like` has seen with this on_bad since the last call, int64 [3].
static Tensor take_bad_data(const Tensor& like, int64_t on_bad) {
  Tensor out = empty({kBadDataFields}, ScalarType::Long, like);
  const Queue queue(like);
  check(cuda::take_bad_data(static_cast<BadData*>(out.mutable_data_ptr()), on_bad, queue.stream()), "take_bad_data");
  return out;
}

#else

void note_bad_data(const Tensor& record, int64_t on_bad) {
  if (on_bad == kCountBad) count_bad_data(static_cast<const BadData*>(record.const_data_ptr())->count);
}

#endif

}  // namespace segops::binding

#ifdef SEGOPS_DEVICE_KERNELS
SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("note_bad_data", TORCH_BOX(&segops::binding::note_bad_data));
  m.impl("take_bad_data", TORCH_BOX(&segops::binding::take_bad_data));
}
#endif
