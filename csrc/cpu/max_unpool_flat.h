// max_unpool2d with indices into planes, and its transpose. Compiled into every ISA namespace.
//
// Indices are arbitrary, so a plane is written by one worker, in the windows' order: the latest stands.
#pragma once
#include "max_unpool_single.h"

namespace segops::SEGOPS_ISA {
namespace {

// Calls body(n, c) for every plane.
template <class P, class Body>
void for_each_plane(const P& p, const Parallel& parallel, const Body& body) {
  for_each_item(parallel, p.batch * p.channels, false,
                [&](int64_t item, int32_t worker) { body(Band{item / p.channels, item % p.channels, 1, 0, 0, worker}); });
}

// T: what duplicates are added in, where kSum.
template <class Element, class T, bool kSum>
Status unpool_flat(const MaxUnpoolFlat& p, const BadIndices& bad, const Parallel& parallel) {
  const Planes& out = p.output;
  const int64_t pixels = out.height * out.width;
  const int64_t own = kSum ? (pixels * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 : 0;
  const Memory scratch(parallel.workers * own, false);
  if (!scratch.data) return Status::out_of_memory;
  for_each_plane(out, parallel, [&](const Band& b) {
    T* const sums = reinterpret_cast<T*>(scratch.data + b.worker * own);
    if constexpr (kSum) __builtin_memset(static_cast<void*>(sums), 0, static_cast<size_t>(own));
    Element* const plane = row_of<Element>(out, b, 0);
    const bool dense = out.stride_w == 1 && out.stride_h == out.width;
    if constexpr (!kSum)
      for (int64_t y = 0; y < out.height; ++y)
        for (int64_t x = 0; x < out.width; ++x) plane[y * out.stride_h + x * out.stride_w] = Element{};
    for (int64_t row = 0; row < p.input.height; ++row) {
      const Element* const input = row_of<const Element>(p.input, b, row);
      const int64_t* const indices = row_of<const int64_t>(p.indices, b, row);
      for (int64_t column = 0; column < p.input.width; ++column) {
        const int64_t index = indices[column * p.indices.stride_w];
        if (index < 0 || index >= pixels) {
          bad.note(b.worker, ((b.n * p.input.channels + b.c) * p.input.height + row) * p.input.width + column, index);
          continue;
        }
        const Element* const window = input + column * p.input.stride_w;
        if constexpr (kSum)
          sums[index] += load<1, T>(window)[0];
        else
          plane[dense ? index : index / out.width * out.stride_h + index % out.width * out.stride_w] = *window;
      }
    }
    if constexpr (kSum)
      for (int64_t i = 0; i < pixels; ++i)
        store<1>(plane + i / out.width * out.stride_h + i % out.width * out.stride_w, load<1, T>(sums + i));
  });
  return Status::ok;
}

template <class U>
void pick_flat(const MaxUnpoolFlatBackward& p, const Parallel& parallel) {
  const ConstPlanes& from = p.grad_output;
  const Planes& to = p.grad_input;
  const int64_t pixels = from.height * from.width, bytes = to.batch * to.channels * to.height * to.width * 16;
  const bool dense = from.stride_h == from.width * from.stride_w;
  for_each_band(to, both_channels_last(from, to), to.height, bytes, parallel, [&](const Band& b) {
    const U* const plane = row_of<const U>(from, b, 0);
    for (int64_t row = b.begin; row < b.end; ++row)
      for (int64_t column = 0; column < to.width; ++column)
        for (int64_t c = 0; c < b.channels; ++c) {
          const int64_t index =
              row_of<const int64_t>(p.indices, b, row)[column * p.indices.stride_w + c * p.indices.stride_c];
          U* const target = row_of<U>(to, b, row) + column * to.stride_w + c * to.stride_c;
          if (index < 0 || index >= pixels)
            *target = U{};
          else if (dense)
            *target = plane[index * from.stride_w + c * from.stride_c];
          else
            *target = plane[index / from.width * from.stride_h + index % from.width * from.stride_w + c * from.stride_c];
        }
  });
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
