// max_pool2d and max_unpool2d element by element: any window, any layout. Compiled into every ISA namespace.
#pragma once
#include "max_unpool_bands.h"

namespace segops::SEGOPS_ISA {
namespace {

template <class Element>
struct Accumulation {
  using type = Element;
};
template <>
struct Accumulation<BFloat16> {
  using type = float;
};
template <>
struct Accumulation<Float16> {
  using type = float;
};

template <class Element>
void pool_singly(const MaxPool& p, const Parallel& parallel) {
  using T = typename Accumulation<Element>::type;
  const ConstPlanes& in = p.input;
  const int64_t bytes = in.batch * in.channels * in.height * in.width * static_cast<int64_t>(sizeof(Element));
  const bool together = both_channels_last(in, p.output);
  for_each_band(p.output, together, p.output.height, bytes, parallel, [&](const Band& b) {
    const Element* const plane = row_of<const Element>(in, b, 0);
    for (int64_t y = b.begin; y < b.end; ++y) {
      const Taps rows = taps_inside(p.vertical, y, in.height);
      for (int64_t x = 0; x < p.output.width; ++x) {
        const Taps columns = taps_inside(p.horizontal, x, in.width);
        const Element* const first =
            plane + tap_position(p.vertical, y, 0) * in.stride_h + tap_position(p.horizontal, x, 0) * in.stride_w;
        for (int64_t c = 0; c < b.channels; ++c) {
          const Element* best = nullptr;
          T most{};
          int64_t index = 0;
          for (int64_t ky = rows.begin; ky < rows.end; ++ky)
            for (int64_t kx = columns.begin; kx < columns.end; ++kx) {
              const Element* const tap = first + ky * p.vertical.dilation * in.stride_h +
                                         kx * p.horizontal.dilation * in.stride_w + c * in.stride_c;
              const T value = load<1, T>(tap)[0];
              if (best && !(value > most) && value == value) continue;
              best = tap;
              most = value;
              index = ky * p.horizontal.kernel + kx;
            }
          row_of<Element>(p.output, b, y)[x * p.output.stride_w + c * p.output.stride_c] = best ? *best : Element{};
          row_of<uint8_t>(p.indices, b, y)[x * p.indices.stride_w + c * p.indices.stride_c] = static_cast<uint8_t>(index);
        }
      }
    }
  });
}

// Notes the bad ones among the indices of windows [begin, end) of window row y.
inline void check_indices(const MaxUnpool& p, const Band& b, int64_t y, int64_t begin, int64_t end, const BadIndices& bad) {
  const Taps rows = taps_inside(p.vertical, y, p.output.height);
  const uint8_t* const indices = row_of<const uint8_t>(p.indices, b, y);
  const uint32_t kernel = static_cast<uint32_t>(p.horizontal.kernel);
  for (int64_t x = begin; x < end; ++x) {
    const Taps columns = taps_inside(p.horizontal, x, p.output.width);
    for (int64_t c = 0; c < b.channels; ++c) {
      const uint32_t index = indices[x * p.indices.stride_w + c * p.indices.stride_c];
      const int64_t ky = index / kernel, kx = index % kernel;
      if (ky >= rows.begin && ky < rows.end && kx >= columns.begin && kx < columns.end) continue;
      bad.note(b.worker, ((b.n * p.input.channels + b.c + c) * p.input.height + y) * p.input.width + x, index);
    }
  }
}

// Sum: adds in T, rounds once. Otherwise Element is moved as it is.
template <class Element, class T, bool kSum>
SEGOPS_INLINE Element unpooled(const MaxUnpool& p, const Element* input, const uint8_t* indices, int64_t y, int64_t x) {
  Element result{};
  Vec<T, 1> sum{};
  for (int64_t ky = p.vertical.kernel - 1; ky >= 0; --ky) {
    const int64_t row = window_of(p.vertical, y, ky, p.input.height);
    if (row < 0) continue;
    for (int64_t kx = p.horizontal.kernel - 1; kx >= 0; --kx) {
      const int64_t column = window_of(p.horizontal, x, kx, p.input.width);
      if (column < 0) continue;
      if (indices[row * p.indices.stride_h + column * p.indices.stride_w] != ky * p.horizontal.kernel + kx) continue;
      const Element* const window = input + row * p.input.stride_h + column * p.input.stride_w;
      if constexpr (kSum)
        sum += load<1, T>(window);
      else
        result = *window;
    }
  }
  if constexpr (kSum) store<1>(&result, sum);
  return result;
}

template <class Element, class T, bool kSum>
void unpool_singly(const MaxUnpool& p, const BadIndices& bad, const Parallel& parallel) {
  const Planes& out = p.output;
  const int64_t rows = p.input.height, bytes = out.batch * out.channels * out.height * out.width * int64_t{sizeof(Element)};
  for_each_band(out, both_channels_last(p.input, out), rows, bytes, parallel, [&](const Band& b) {
    for (int64_t y = b.begin; y < b.end; ++y) check_indices(p, b, y, 0, p.input.width, bad);
    const int64_t end = first_owned(p.vertical, b.end, rows, out.height);
    for (int64_t y = first_owned(p.vertical, b.begin, rows, out.height); y < end; ++y)
      for (int64_t x = 0; x < out.width; ++x)
        for (int64_t c = 0; c < b.channels; ++c)
          row_of<Element>(out, b, y)[x * out.stride_w + c * out.stride_c] =
              unpooled<Element, T, kSum>(p, row_of<const Element>(p.input, b, 0) + c * p.input.stride_c,
                                         row_of<const uint8_t>(p.indices, b, 0) + c * p.indices.stride_c, y, x);
  });
}

// Whether a window after (row, column) points at (y, x), where that one points.
inline bool superseded(const MaxUnpoolBackward& p, const uint8_t* indices, int64_t row, int64_t column, int64_t y,
                       int64_t x) {
  for (int64_t ky = 0; ky < p.vertical.kernel; ++ky) {
    const int64_t later = window_of(p.vertical, y, ky, p.grad_input.height);
    if (later < 0) continue;
    for (int64_t kx = 0; kx < p.horizontal.kernel; ++kx) {
      const int64_t beside = window_of(p.horizontal, x, kx, p.grad_input.width);
      if (beside < 0) continue;
      if (later == row && beside == column) return false;
      if (indices[later * p.indices.stride_h + beside * p.indices.stride_w] == ky * p.horizontal.kernel + kx) return true;
    }
  }
  return false;
}

template <class U>
void pick_singly(const MaxUnpoolBackward& p, const Parallel& parallel) {
  const ConstPlanes& from = p.grad_output;
  const Planes& to = p.grad_input;
  const int64_t bytes = from.batch * from.channels * from.height * from.width * static_cast<int64_t>(sizeof(U));
  for_each_band(to, both_channels_last(from, to), to.height, bytes, parallel, [&](const Band& b) {
    const uint8_t* const plane = row_of<const uint8_t>(p.indices, b, 0);
    for (int64_t row = b.begin; row < b.end; ++row)
      for (int64_t column = 0; column < to.width; ++column)
        for (int64_t c = 0; c < b.channels; ++c) {
          const uint8_t* const indices = plane + c * p.indices.stride_c;
          const int64_t index = indices[row * p.indices.stride_h + column * p.indices.stride_w];
          const int64_t y = tap_position(p.vertical, row, index / p.horizontal.kernel);
          const int64_t x = tap_position(p.horizontal, column, index % p.horizontal.kernel);
          const bool inside = index < p.vertical.kernel * p.horizontal.kernel && y >= 0 && y < from.height && x >= 0 &&
                              x < from.width && (p.accumulate || !superseded(p, indices, row, column, y, x));
          row_of<U>(to, b, row)[column * to.stride_w + c * to.stride_c] =
              inside ? row_of<const U>(from, b, y)[x * from.stride_w + c * from.stride_c] : U{};
        }
  });
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
