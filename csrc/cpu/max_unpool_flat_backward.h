// The transpose of max_unpool2d with indices into planes. Compiled into every ISA namespace.
//
// Each element of the result is where its index says, whatever that is. Rows of windows of 2 x 2 that tile the plane are
// tried in vectors first.
#pragma once
#include "max_unpool_flat.h"
#include "max_unpool_pairs.h"

namespace segops::SEGOPS_ISA {
namespace {

// 2 x 2 windows that tile: a row of `count` windows, at least kLanes, from the rows `upper` and the one `below` elements
// behind it. Tells whether every index is inside its window; otherwise the row is to be made another way.
template <class U, int kLanes>
bool pick_flat_pairs(const U* upper, int64_t below, const int64_t* indices, int64_t count, int64_t origin, int64_t width,
                     U* to) {
  using Number = typename TapNumber<sizeof(U)>::type;
  Vec<uint64_t, kLanes> first, stray{};
  for (int i = 0; i < kLanes; ++i) first[i] = static_cast<uint64_t>(2 * i);
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t x = at < count - kLanes ? at : count - kLanes;
    fetch_ahead(indices + x);
    const auto number = tap_of<Number, kLanes>(indices + x, first + static_cast<uint64_t>(origin + 2 * x),
                                               static_cast<uint64_t>(width), stray);
    Vec<U, kLanes> picked{};
    for (int tap = 0; tap < 4; ++tap) {
      const U* const row = upper + tap / 2 * below + 2 * x;
      if (tap % 2 == 0) fetch_ahead(row);
      const auto value = every_other<U, kLanes>(load<kLanes, U>(row), load<kLanes, U>(row + kLanes), tap % 2);
      picked = number == broadcast<kLanes, Number>(static_cast<Number>(tap)) ? value : picked;
    }
    *reinterpret_cast<Unaligned<U, kLanes>*>(to + x) = picked;
  }
  return !any_bit<kLanes>(stray);
}

template <class U>
void pick_flat(const MaxUnpoolFlatBackward& p, const Parallel& parallel) {
  const ConstPlanes from = p.grad_output;
  const Planes to = p.grad_input;
  const uint64_t width = static_cast<uint64_t>(from.width), pixels = width * static_cast<uint64_t>(from.height);
  const int64_t bytes = to.batch * to.channels * to.height * to.width * 16;
  const int64_t step = from.stride_w, to_step = to.stride_w, index_step = p.indices.stride_w;
  const bool dense = from.stride_h == from.width * step;
  constexpr int kLanes = kNativeLanes<int64_t>;
  const bool tiles = step == 1 && to_step == 1 && index_step == 1 && to.width >= kLanes && from.height / 2 == to.height &&
                     from.width / 2 == to.width;
  for_each_band(to, both_channels_last(from, to), to.height, bytes, parallel, [&](const Band& b) {
    const int64_t channels = b.channels;
    const U* const plane = row_of<const U>(from, b, 0);
    const auto element = [&](uint64_t index) {
      return dense
                 ? plane + static_cast<int64_t>(index) * step
                 : plane + static_cast<int64_t>(index / width) * from.stride_h + static_cast<int64_t>(index % width) * step;
    };
    for (int64_t row = b.begin; row < b.end; ++row) {
      const int64_t* indices = row_of<const int64_t>(p.indices, b, row);
      if (tiles && pick_flat_pairs<U, kLanes>(plane + 2 * row * from.stride_h, from.stride_h, indices, to.width,
                                              2 * row * from.width, from.width, row_of<U>(to, b, row)))
        continue;
      const int64_t next = row + 1 < b.end && channels == 1 ? p.indices.stride_h : 0;
      U* target = row_of<U>(to, b, row);
      for (int64_t column = 0; column < to.width; ++column, indices += index_step, target += to_step) {
        // Elements of a plane come in no order that a processor foresees.
        if (next != 0)
          prefetch(plane, static_cast<int64_t>(static_cast<uint64_t>(indices[next]) * static_cast<uint64_t>(step)), 1);
        for (int64_t c = 0; c < channels; ++c) {
          const uint64_t index = static_cast<uint64_t>(indices[c]);
          target[c] = index < pixels ? element(index)[c] : U{};
        }
      }
    }
  });
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
