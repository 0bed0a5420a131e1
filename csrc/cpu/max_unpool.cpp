// max_pool2d, max_unpool2d with window-local and with flat indices, and their transposes.
#include "segops/max_unpool.h"

#include "isa.h"
#include "max_unpool_flat_backward.h"
#include "max_unpool_pairs.h"
#include "max_unpool_separable.h"
#include "max_unpool_spread.h"

namespace segops::SEGOPS_ISA {
namespace {

// Calls body(a value of an unsigned type of the size of `dtype`).
template <class Body>
Status as_bits(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::uint8:
    case Dtype::int8: return body(uint8_t{});
    case Dtype::bfloat16:
    case Dtype::float16:
    case Dtype::int16: return body(uint16_t{});
    case Dtype::float32:
    case Dtype::int32: return body(uint32_t{});
    case Dtype::float64:
    case Dtype::int64: return body(uint64_t{});
  }
  return Status::unsupported;
}

// Calls body(a value of the floating-point type `dtype`).
template <class Body>
Status as_float(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float32: return body(float{});
    case Dtype::float64: return body(double{});
    case Dtype::bfloat16: return body(BFloat16{});
    case Dtype::float16: return body(Float16{});
    default: return Status::unsupported;
  }
}

Status clear_image(const MaxUnpool& p, const Parallel& parallel) {
  return as_bits(p.dtype, [&](auto bits) {
    for_each_plane(p.output, 1, parallel,
                   [&](const Band& b) { clear_rows<decltype(bits)>(p.output, b, 0, p.output.height); });
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
    default: return as_float(p.dtype, pool);
  }
}

Status max_unpool2d(const MaxUnpool& p, const Parallel& parallel) {
  const BadIndices bad(parallel);
  if (!bad.allocated()) return Status::out_of_memory;
  const auto sum = [&](auto element) {
    using Element = decltype(element);
    return unpool_image<Element, typename Accumulation<Element>::type, true>(p, bad, parallel);
  };
  const auto move = [&](auto bits) { return unpool_image<decltype(bits), decltype(bits), false>(p, bad, parallel); };
  // Windows that share no element have nothing to add.
  const bool adds = p.accumulate && !(apart(p.vertical) && apart(p.horizontal));
  // Rows of the output go with rows of windows.
  if (p.input.height == 0) return bad.report(p.bad_indices), clear_image(p, parallel);
  const Status status = adds ? as_float(p.dtype, sum) : as_bits(p.dtype, move);
  bad.report(p.bad_indices);
  return status;
}

Status max_unpool2d_backward(const MaxUnpoolBackward& p, const Parallel& parallel) {
  return as_bits(p.dtype, [&](auto bits) {
    using U = decltype(bits);
    return pick_pairs<U>(p, parallel) ? Status::ok : pick_image<U>(p, parallel);
  });
}

Status max_unpool2d_flat(const MaxUnpoolFlat& p, const Parallel& parallel) {
  const BadIndices bad(parallel);
  if (!bad.allocated()) return Status::out_of_memory;
  const auto sum = [&](auto element) {
    using Element = decltype(element);
    return unpool_flat<Element, typename Accumulation<Element>::type, true>(p, bad, parallel);
  };
  const auto move = [&](auto bits) { return unpool_flat<decltype(bits), decltype(bits), false>(p, bad, parallel); };
  const Status status = p.accumulate ? as_float(p.dtype, sum) : as_bits(p.dtype, move);
  bad.report(p.bad_indices);
  return status;
}

Status max_unpool2d_flat_backward(const MaxUnpoolFlatBackward& p, const Parallel& parallel) {
  return as_bits(p.dtype, [&](auto bits) {
    pick_flat<decltype(bits)>(p, parallel);
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
