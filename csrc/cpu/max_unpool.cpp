// max_pool2d, max_unpool2d with window-local and with flat indices, and their transposes.
#include "segops/max_unpool.h"

#include "dtypes.h"
#include "isa.h"
#include "max_unpool_flat_backward.h"
#include "max_unpool_pairs.h"
#include "max_unpool_separable.h"
#include "max_unpool_spread.h"

namespace segops::SEGOPS_ISA {
namespace {

Status clear_image(Dtype dtype, const Planes& output, const Parallel& parallel) {
  return as_bits(dtype, [&]<class U>() {
    for_each_plane(output, 1, parallel, [&](const Band& b) { clear_rows<U>(output, b, 0, output.height); });
    return Status::ok;
  });
}

}  // namespace

Status max_pool2d(const MaxPool& p, const Parallel& parallel) {
  const auto pool = [&](auto element) {
    using Element = decltype(element);
    return pool_pairs<Element>(p, parallel) ? Status::ok : pool_windows<Element>(p, parallel);
  };
  switch (p.dtype) {
    case Dtype::uint8: return pool(uint8_t{});
    case Dtype::int8: return pool(int8_t{});
    case Dtype::int16: return pool(int16_t{});
    case Dtype::int32: return pool(int32_t{});
    case Dtype::int64: return pool(int64_t{});
    default: return as_float(p.dtype, [&]<class, class Element>() { return pool(Element{}); });
  }
}

Status max_unpool2d(const MaxUnpool& p, const Parallel& parallel) {
  const BadIndices bad(parallel);
  if (!bad.allocated()) return Status::out_of_memory;
  const auto sum = [&]<class T, class Element>() { return unpool_image<Element, T, true>(p, bad, parallel); };
  const auto move = [&]<class U>() { return unpool_image<U, U, false>(p, bad, parallel); };
  // Windows that share no element have nothing to add.
  const bool adds = p.accumulate && !(apart(p.vertical) && apart(p.horizontal));
  // Rows of the output go with rows of windows.
  if (p.input.height == 0) return bad.report(p.bad_indices), clear_image(p.dtype, p.output, parallel);
  const Status status = adds ? as_float(p.dtype, sum) : as_bits(p.dtype, move);
  bad.report(p.bad_indices);
  return status;
}

Status max_unpool2d_backward(const MaxUnpoolBackward& p, const Parallel& parallel) {
  return as_bits(p.dtype, [&]<class U>() { return pick_pairs<U>(p, parallel) ? Status::ok : pick_image<U>(p, parallel); });
}

Status max_unpool2d_flat(const MaxUnpoolFlat& p, const Parallel& parallel) {
  const BadIndices bad(parallel);
  if (!bad.allocated()) return Status::out_of_memory;
  const auto sum = [&]<class T, class Element>() { return unpool_flat<Element, T, true>(p, bad, parallel); };
  const auto move = [&]<class U>() { return unpool_flat<U, U, false>(p, bad, parallel); };
  if (p.input.height == 0) return bad.report(p.bad_indices), clear_image(p.dtype, p.output, parallel);
  const Status status = p.accumulate ? as_float(p.dtype, sum) : as_bits(p.dtype, move);
  bad.report(p.bad_indices);
  return status;
}

Status max_unpool2d_flat_backward(const MaxUnpoolFlatBackward& p, const Parallel& parallel) {
  return as_bits(p.dtype, [&]<class U>() {
    pick_flat<U>(p, parallel);
    return Status::ok;
  });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(max_pool2d, MaxPool)
SEGOPS_LAUNCHER(max_unpool2d, MaxUnpool)
SEGOPS_LAUNCHER(max_unpool2d_backward, MaxUnpoolBackward)
SEGOPS_LAUNCHER(max_unpool2d_flat, MaxUnpoolFlat)
SEGOPS_LAUNCHER(max_unpool2d_flat_backward, MaxUnpoolFlatBackward)
#endif
