// upsample_nearest2d and bed_of_nails2d, both ways: where each output of an axis comes from is tabulated once, the rows are
// moved by upsample_nearest_move.h and summed by upsample_nearest_sum.h.
#include "segops/upsample_nearest.h"

#include "dtypes.h"
#include "isa.h"
#include "upsample_nearest_move.h"
#include "upsample_nearest_sum.h"

namespace segops::SEGOPS_ISA {
namespace {

// Calls source(i) for the outputs of both axes.
template <class Vertical, class Horizontal>
Status move(Dtype dtype, const ConstPlanes& input, const Planes& output, bool warm, const Vertical& vertical,
            const Horizontal& horizontal, const Parallel& parallel) {
  if (output.batch == 0 || output.channels == 0 || output.height == 0 || output.width == 0) return Status::ok;
  const int64_t extents[] = {output.height, output.width, input.height, input.width};
  for (int64_t extent : extents)
    if (extent > INT32_MAX) return Status::unsupported;
  Memory tables((output.height + output.width) * static_cast<int64_t>(sizeof(int32_t)));
  if (!tables.data) return Status::out_of_memory;
  int32_t* const rows = reinterpret_cast<int32_t*>(tables.data);
  int32_t* const columns = rows + output.height;
  for (int64_t y = 0; y < output.height; ++y) rows[y] = static_cast<int32_t>(vertical(y));
  for (int64_t x = 0; x < output.width; ++x) columns[x] = static_cast<int32_t>(horizontal(x));
  const Move move{input, output, rows, columns, warm};
  return as_bits(dtype, [&]<class Bits>() { return move_image<Bits>(move, parallel); });
}

}  // namespace

Status upsample_nearest2d(const UpsampleNearest& p, const Parallel& parallel) {
  return move(
      p.dtype, p.input, p.output, p.warm, [&](int64_t y) { return nearest_source(p.vertical, y); },
      [&](int64_t x) { return nearest_source(p.horizontal, x); }, parallel);
}

Status bed_of_nails2d(const BedOfNails& p, const Parallel& parallel) {
  const auto source = [&](int64_t i) {
    if (p.transposed) return i * p.scale;
    return i % p.scale == 0 ? i / p.scale : int64_t{-1};
  };
  return move(p.dtype, p.input, p.output, p.warm, source, source, parallel);
}

Status upsample_nearest2d_backward(const UpsampleNearestBackward& p, const Parallel& parallel) {
  const Planes& to = p.grad_input;
  if (to.batch == 0 || to.channels == 0 || to.height == 0 || to.width == 0) return Status::ok;
  if (p.grad_output.height > INT32_MAX || p.grad_output.width > INT32_MAX) return Status::unsupported;
  if (to.height >= INT32_MAX || to.width >= INT32_MAX) return Status::unsupported;
  Memory tables((to.height + to.width + 2) * static_cast<int64_t>(sizeof(int32_t)));
  if (!tables.data) return Status::out_of_memory;
  int32_t* const rows = reinterpret_cast<int32_t*>(tables.data);
  int32_t* const columns = rows + to.height + 1;
  for (int64_t y = 0; y <= to.height; ++y) rows[y] = static_cast<int32_t>(first_nearest_output(p.vertical, y));
  for (int64_t x = 0; x <= to.width; ++x) columns[x] = static_cast<int32_t>(first_nearest_output(p.horizontal, x));
  const Sum sum{p.grad_output, to, rows, columns};
  return as_float(p.dtype, [&]<class T, class In>() { return sum_image<T, In>(sum, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(upsample_nearest2d, UpsampleNearest)
SEGOPS_LAUNCHER(upsample_nearest2d_backward, UpsampleNearestBackward)
SEGOPS_LAUNCHER(bed_of_nails2d, BedOfNails)
#endif
