// max_pool2d of large windows: the maxima of rows of windows first, then the maxima of those. Compiled into every ISA
// namespace.
//
// That finds the same elements: the first maximum in row-major order is the first of the first row that has it, and the last
// NaN is the last of the last row that has one.
#pragma once
#include "max_unpool_taps.h"

namespace segops::SEGOPS_ISA {
namespace {

// Images [begin, begin + count).
template <class P>
P images_of(const P& planes, int64_t begin, int64_t count, int64_t element) {
  P some = planes;
  some.batch = count;
  if (begin > 0)
    some.data = reinterpret_cast<decltype(some.data)>(reinterpret_cast<uintptr_t>(planes.data) +
                                                      static_cast<uintptr_t>(begin * planes.stride_n * element));
  return some;
}

// The maxima of columns of `rows`, whose indices are columns of windows.
template <class Element>
void pool_columns(const MaxPool& p, const Planes& rows, const PlanesOf<uint8_t>& columns, bool together,
                  const Parallel& parallel) {
  using U = typename Compared<Element>::Memory;
  using Number = typename TapNumber<sizeof(U)>::type;
  constexpr int kLanes = kNativeLanes<U>;
  const int64_t extent = p.output.width * (together ? p.output.channels : 1);
  const int64_t bytes = rows.batch * rows.channels * rows.height * rows.width * int64_t{sizeof(U)};
  for_each_band(p.output, together, p.output.height, bytes, parallel, [&](const Band& b) {
    for (int64_t y = b.begin; y < b.end; ++y) {
      const Taps inside = taps_inside(p.vertical, y, rows.height);
      const int64_t first = tap_position(p.vertical, y, inside.begin);
      const U* const values = row_of<const U>(rows, b, first);
      const uint8_t* const numbers = row_of<const uint8_t>(columns, b, first);
      U* const output = row_of<U>(p.output, b, y);
      uint8_t* const indices = row_of<uint8_t>(p.indices, b, y);
      for (int64_t at = 0; at < extent; at += kLanes) {
        const int64_t i = at < extent - kLanes ? at : extent - kLanes;
        PoolVisitor<Element, kLanes> visitor(load_indices<Number, kLanes>(numbers + i) +
                                             static_cast<Number>(inside.begin * p.horizontal.kernel));
        for (int64_t ky = inside.begin; ky < inside.end; ++ky) {
          const int64_t below = (ky - inside.begin) * p.vertical.dilation;
          const auto number = load_indices<Number, kLanes>(numbers + below * columns.stride_h + i);
          visitor.tap(number + static_cast<Number>(ky * p.horizontal.kernel),
                      *reinterpret_cast<const Unaligned<U, kLanes>*>(values + below * rows.stride_h + i));
        }
        visitor.finish(output + i, indices + i);
      }
    }
  });
}

template <class Element>
Status pool_separably(const MaxPool& p, bool together, const Parallel& parallel) {
  constexpr int64_t kBytes = 16 << 20;  // of images between, unless one is larger
  using U = typename Compared<Element>::Memory;
  const int64_t channels = p.output.channels, height = p.input.height, width = p.output.width;
  const int64_t image = channels * height * width, fit = kBytes / (image * int64_t{sizeof(U)} + 1) + 1;
  const int64_t at_once = fit < p.input.batch ? fit : p.input.batch;
  const Memory values(at_once * image * int64_t{sizeof(U)}, false), numbers(at_once * image, false);
  if (!values.data || !numbers.data) return Status::out_of_memory;
  for (int64_t n = 0; n < p.input.batch; n += at_once) {
    const int64_t count = n + at_once < p.input.batch ? at_once : p.input.batch - n;
    MaxPool whole = p, row = p;
    whole.input = images_of(p.input, n, count, sizeof(U));
    whole.output = images_of(p.output, n, count, sizeof(U));
    whole.indices = images_of(p.indices, n, count, 1);
    row.input = whole.input;
    row.output = Planes{values.data, count, channels, height, width, image, height * width, width, 1};
    if (together) row.output.stride_c = 1, row.output.stride_h = width * channels, row.output.stride_w = channels;
    const Planes& o = row.output;
    row.indices = {
        reinterpret_cast<uint8_t*>(numbers.data), count, channels, height, width, image, o.stride_c, o.stride_h, o.stride_w};
    row.vertical = WindowAxis{1, 1, 0, 1};
    const Status status = pool_image<Element>(row, parallel);
    if (status != Status::ok) return status;
    pool_columns<Element>(whole, row.output, row.indices, together, parallel);
  }
  return Status::ok;
}

template <class Element>
Status pool_windows(const MaxPool& p, const Parallel& parallel) {
  using U = typename Compared<Element>::Memory;
  constexpr int64_t kWorth = 16;  // taps that are spared
  const bool together = both_channels_last(p.input, p.output) && p.indices.stride_c == 1;
  const int64_t pixel = together ? p.output.channels : 1,
                fewer = p.vertical.stride * p.horizontal.kernel + p.vertical.kernel;
  const bool dense = p.output.stride_w == pixel && p.indices.stride_w == pixel && (together || p.input.stride_w == 1);
  if (dense && p.output.width * pixel >= kNativeLanes<U> && may_split(p.vertical, p.horizontal) &&
      p.vertical.kernel * p.horizontal.kernel >= fewer + kWorth)
    return pool_separably<Element>(p, together, parallel);
  return pool_image<Element>(p, parallel);
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
