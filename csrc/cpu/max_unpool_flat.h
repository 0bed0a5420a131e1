// max_unpool2d with indices into planes, and its transpose. Compiled into every ISA namespace.
//
// Indices are arbitrary, so a plane is written by one worker, in the windows' order: the latest stands.
#pragma once
#include "max_unpool_single.h"

namespace segops::SEGOPS_ISA {
namespace {

// Calls body(band) for `group` channels of every image at a time.
template <class P, class Body>
void for_each_plane(const P& p, int64_t group, const Parallel& parallel, const Body& body) {
  const int64_t groups = (p.channels + group - 1) / group;
  for_each_item(parallel, p.batch * groups, false, [&](int64_t item, int32_t worker) {
    const int64_t c = item % groups * group, channels = c + group < p.channels ? group : p.channels - c;
    body(Band{item / groups, c, channels, 0, 0, worker});
  });
}

template <class Element>
void clear_planes(const Planes& out, const Band& b) {
  for (int64_t y = 0; y < out.height; ++y) {
    Element* const row = row_of<Element>(out, b, y);
    if (out.stride_w == 1) {
      __builtin_memset(static_cast<void*>(row), 0, static_cast<size_t>(out.width) * sizeof(Element));
      continue;
    }
    for (int64_t x = 0; x < out.width; ++x)
      for (int64_t c = 0; c < b.channels; ++c) row[x * out.stride_w + c * out.stride_c] = Element{};
  }
}

// T: what duplicates are added in, where kSum.
template <class Element, class T, bool kSum>
Status unpool_flat(const MaxUnpoolFlat& p, const BadIndices& bad, const Parallel& parallel) {
  constexpr int64_t kLine = 64;
  const Planes& out = p.output;
  const int64_t pixels = out.height * out.width;
  const int64_t own = kSum ? (pixels * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 : 0;
  const Memory scratch(parallel.workers * own, false);
  if (!scratch.data) return Status::out_of_memory;
  // Channels of one cache line belong to one worker.
  const int64_t group = !kSum && both_channels_last(p.input, out) ? kLine / int64_t{sizeof(Element)} : 1;
  const bool dense = out.stride_h == out.width * out.stride_w;
  for_each_plane(out, group, parallel, [&](const Band& b) {
    T* const sums = reinterpret_cast<T*>(scratch.data + b.worker * own);
    if constexpr (kSum)
      __builtin_memset(static_cast<void*>(sums), 0, static_cast<size_t>(own));
    else
      clear_planes<Element>(out, b);
    Element* const plane = row_of<Element>(out, b, 0);
    for (int64_t row = 0; row < p.input.height; ++row) {
      const Element* const input = row_of<const Element>(p.input, b, row);
      const int64_t* const indices = row_of<const int64_t>(p.indices, b, row);
      for (int64_t column = 0; column < p.input.width; ++column)
        for (int64_t c = 0; c < b.channels; ++c) {
          const int64_t index = indices[column * p.indices.stride_w + c * p.indices.stride_c];
          if (index < 0 || index >= pixels) {
            bad.note(b.worker, ((b.n * out.channels + b.c + c) * p.input.height + row) * p.input.width + column, index);
            continue;
          }
          const Element* const window = input + column * p.input.stride_w + c * p.input.stride_c;
          if constexpr (kSum) {
            sums[index] += load<1, T>(window)[0];
          } else {
            const int64_t at =
                dense ? index * out.stride_w : index / out.width * out.stride_h + index % out.width * out.stride_w;
            plane[at + c * out.stride_c] = *window;
          }
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
    for (int64_t row = b.begin; row < b.end; ++row) {
      const int64_t* const indices = row_of<const int64_t>(p.indices, b, row);
      U* const target = row_of<U>(to, b, row);
      for (int64_t column = 0; column < to.width; ++column)
        for (int64_t c = 0; c < b.channels; ++c) {
          const int64_t index = indices[column * p.indices.stride_w + c * p.indices.stride_c];
          U picked{};
          if (index >= 0 && index < pixels) {
            const int64_t at =
                dense ? index * from.stride_w : index / from.width * from.stride_h + index % from.width * from.stride_w;
            picked = plane[at + c * from.stride_c];
          }
          target[column * to.stride_w + c * to.stride_c] = picked;
        }
    }
  });
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
