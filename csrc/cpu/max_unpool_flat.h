// max_unpool2d with indices into planes, and its transpose. Compiled into every ISA namespace.
//
// Windows of 2 x 2 that tile the output, each index inside its own, are tried first, in vectors. Otherwise indices are
// arbitrary, so a plane is written by one worker, in the windows' order: the latest stands.
#pragma once
#include "max_unpool_taps.h"

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

// The tap of a 2 x 2 window that each of kLanes indices tells. origin: the indices of the windows' first taps; stray: other
// than 0 from the first index on that is outside its window.
template <class Number, int kLanes>
SEGOPS_INLINE Vec<Number, kLanes> tap_of(const int64_t* indices, Vec<uint64_t, kLanes> origin, uint64_t width,
                                         Vec<uint64_t, kLanes>& stray) {
  using Indices = Vec<uint64_t, kLanes>;
  // Modulo 2^64: a negative offset is a large one.
  const Indices offset = *reinterpret_cast<const Unaligned<uint64_t, kLanes>*>(indices) - origin;
  const auto below = offset >= width;
  const Indices column = offset - (below ? Indices{} + width : Indices{});
  stray |= column & ~uint64_t{1};
  return __builtin_convertvector(column + (below ? Indices{} + 2u : Indices{}), Vec<Number, kLanes>);
}

// Vectors of fewer than 16 bytes are never streamed.
template <class U, int kLanes>
SEGOPS_INLINE void put_flat(U* p, Vec<U, kLanes> v, bool streaming) {
  if constexpr (kLanes * sizeof(U) >= 16)
    put<U, kLanes>(p, v, streaming);
  else
    *reinterpret_cast<Unaligned<U, kLanes>*>(p) = v;
}

template <int kLanes>
SEGOPS_INLINE bool any_bit(Vec<uint64_t, kLanes> v) {
  uint64_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= v[i];
  return all != 0;
}

// 2 x 2 windows that tile: the rows `upper` and `lower` from `count` windows, at least kLanes. Tells whether every index
// is inside its window.
template <class U, int kLanes>
bool spread_flat_pairs(const U* input, const int64_t* indices, int64_t count, int64_t origin, int64_t width, U* upper,
                       U* lower, bool streaming) {
  using Number = typename TapNumber<sizeof(U)>::type;
  using V = Vec<U, kLanes>;
  using N = Vec<Number, kLanes>;
  N lanes[2], taps;
  Vec<uint64_t, kLanes> first, stray{};
  for (int i = 0; i < kLanes; ++i) {
    lanes[0][i] = static_cast<Number>(i / 2);
    lanes[1][i] = static_cast<Number>(kLanes / 2 + i / 2);
    taps[i] = static_cast<Number>(i % 2);
    first[i] = static_cast<uint64_t>(2 * i);
  }
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t x = at < count - kLanes ? at : count - kLanes;
    const V value = *reinterpret_cast<const Unaligned<U, kLanes>*>(input + x);
    const N number = tap_of<Number, kLanes>(indices + x, first + static_cast<uint64_t>(origin + 2 * x),
                                            static_cast<uint64_t>(width), stray);
    for (int half = 0; half < 2; ++half) {
      const V twice = permute<U, kLanes>(value, lanes[half]);
      const N from = permute<Number, kLanes>(number, lanes[half]);
      put_flat<U, kLanes>(upper + 2 * x + half * kLanes, from == taps ? twice : V{}, streaming);
      put_flat<U, kLanes>(lower + 2 * x + half * kLanes, from == taps + Number{2} ? twice : V{}, streaming);
    }
  }
  return !any_bit<kLanes>(stray);
}

// The same of one window of dense pixels, whose channels are lanes.
template <class U, int kLanes>
SEGOPS_INLINE void spread_flat_pixel(const U* input, const int64_t* indices, int64_t channels, int64_t origin, int64_t width,
                                     U* const (&pixels)[4], bool streaming, Vec<uint64_t, kLanes>& stray) {
  using Number = typename TapNumber<sizeof(U)>::type;
  using V = Vec<U, kLanes>;
  const auto first = Vec<uint64_t, kLanes>{} + static_cast<uint64_t>(origin);
  for (int64_t i = 0; i < channels; i += kLanes) {
    const int64_t c = i < channels - kLanes ? i : channels - kLanes;
    const V value = *reinterpret_cast<const Unaligned<U, kLanes>*>(input + c);
    const auto number = tap_of<Number, kLanes>(indices + c, first, static_cast<uint64_t>(width), stray);
    for (int tap = 0; tap < 4; ++tap)
      put_flat<U, kLanes>(pixels[tap] + c, number == broadcast<kLanes, Number>(static_cast<Number>(tap)) ? value : V{},
                          streaming);
  }
}

// Clears rows [begin, end) from column `first` on.
template <class U>
void clear_rest(const Planes& out, const Band& b, int64_t begin, int64_t end, int64_t first) {
  for (int64_t y = begin; y < end; ++y)
    for (int64_t x = first; x < out.width; ++x)
      __builtin_memset(row_of<U>(out, b, y) + x * out.stride_w, 0, static_cast<size_t>(b.channels) * sizeof(U));
}

// The planes (images of dense pixels) of which an index is outside its 2 x 2 window; or that were not tried, being of other
// sizes or layouts. They are yet to be written, the others are done.
template <class U>
class Untiled {
 public:
  static constexpr int kLanes = kNativeLanes<int64_t>;

  Untiled(const MaxUnpoolFlat& p, bool together)
      : channels_(together ? 1 : p.output.channels), together_(together), planes_(p.output.batch * channels_) {}
  bool allocated() const { return planes_.data != nullptr; }
  bool holds(const Band& b) const { return __atomic_load_n(of(b), __ATOMIC_RELAXED) != 0; }

  void try_tiles(const MaxUnpoolFlat& p, const Parallel& parallel) const {
    const Planes& out = p.output;
    const int64_t windows = p.input.width, rows = p.input.height;
    const bool dense = p.input.stride_w == 1 && p.indices.stride_w == 1 && out.stride_w == 1 && windows >= kLanes;
    const bool pixels = together_ && p.indices.stride_c == 1 && out.channels >= kLanes;
    if (!(together_ ? pixels : dense) || out.height / 2 != rows || out.width / 2 != windows) {
      __builtin_memset(planes_.data, 1, static_cast<size_t>(out.batch * channels_));
      return;
    }
    const int64_t lanes = together_ ? out.channels : windows, pixel_bytes = out.stride_w * int64_t{sizeof(U)};
    const bool streaming = kLanes * sizeof(U) >= 16 && lanes % kLanes == 0 && (!together_ || pixel_bytes % 64 == 0) &&
                           worth_streaming(out, p.warm, sizeof(U), together_);
    const int64_t bytes = out.batch * out.channels * out.height * out.width * int64_t{sizeof(U)};
    for_each_band(out, together_, rows, bytes, parallel, [&](const Band& b) {
      for (int64_t y = b.begin; y < b.end && !holds(b); ++y) {
        if (!(together_ ? try_pixels(p, b, y, streaming) : try_row(p, b, y, streaming)))
          __atomic_store_n(of(b), char{1}, __ATOMIC_RELAXED);
        clear_rest<U>(out, b, 2 * y, 2 * y + 2, 2 * windows);
      }
      if (b.end == rows) clear_rest<U>(out, b, 2 * rows, out.height, 0);
    });
  }

 private:
  char* of(const Band& b) const { return planes_.data + b.n * channels_ + (together_ ? 0 : b.c); }

  static bool try_row(const MaxUnpoolFlat& p, const Band& b, int64_t y, bool streaming) {
    U* const upper = row_of<U>(p.output, b, 2 * y);
    return spread_flat_pairs<U, kLanes>(row_of<const U>(p.input, b, y), row_of<const int64_t>(p.indices, b, y),
                                        p.input.width, 2 * y * p.output.width, p.output.width, upper,
                                        upper + p.output.stride_h, streaming);
  }

  static bool try_pixels(const MaxUnpoolFlat& p, const Band& b, int64_t y, bool streaming) {
    const Planes& out = p.output;
    Vec<uint64_t, kLanes> stray{};
    for (int64_t x = 0; x < p.input.width; ++x) {
      U *const pixel = row_of<U>(out, b, 2 * y) + 2 * x * out.stride_w, *const lower = pixel + out.stride_h;
      spread_flat_pixel<U, kLanes>(row_of<const U>(p.input, b, y) + x * p.input.stride_w,
                                   row_of<const int64_t>(p.indices, b, y) + x * p.indices.stride_w, out.channels,
                                   2 * (y * out.width + x), out.width,
                                   {pixel, pixel + out.stride_w, lower, lower + out.stride_w}, streaming, stray);
      if (any_bit<kLanes>(stray)) return false;
    }
    return true;
  }

  int64_t channels_;
  bool together_;
  Memory planes_;
};

// T: what duplicates are added in, where kSum.
template <class Element, class T, bool kSum>
Status unpool_flat(const MaxUnpoolFlat& p, const BadIndices& bad, const Parallel& parallel) {
  constexpr int64_t kLine = 64;
  const Planes& out = p.output;
  const int64_t pixels = out.height * out.width;
  const int64_t own = kSum ? (pixels * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 : 0;
  const Memory scratch(parallel.workers * own, false);
  if (!scratch.data) return Status::out_of_memory;
  const bool together = !kSum && both_channels_last(p.input, out);
  const Untiled<Element> untiled(p, together);
  if (!untiled.allocated()) return Status::out_of_memory;
  if constexpr (!kSum) untiled.try_tiles(p, parallel);
  // Channels of one cache line belong to one worker.
  const int64_t group = together ? kLine / int64_t{sizeof(Element)} : 1;
  const bool dense = out.stride_h == out.width * out.stride_w;
  for_each_plane(out, group, parallel, [&](const Band& b) {
    if (!kSum && !untiled.holds(b)) return;
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
