// max_unpool2d with indices into planes. Compiled into every ISA namespace.
//
// Windows of 2 x 2 that tile the output, each index inside its own, are tried first, in vectors. Otherwise indices are
// arbitrary, so a plane is written by one worker, in the windows' order: the latest stands.
#pragma once
#include "max_unpool_scatter.h"

namespace segops::SEGOPS_ISA {
namespace {

// Clears rows [begin, end) of one channel, or of neighbouring ones.
template <class U>
void clear_rows(const Planes& out, const Band& b, int64_t begin, int64_t end) {
  const int64_t extent = out.width * b.channels;
  if (out.stride_w == b.channels && out.stride_h == extent && begin < end)
    return copy_pixel<U>(nullptr, row_of<U>(out, b, begin), (end - begin) * extent, false);
  for (int64_t y = begin; y < end; ++y) {
    U* const row = row_of<U>(out, b, y);
    if (out.stride_w == b.channels)
      copy_pixel<U>(nullptr, row, extent, false);
    else
      for (int64_t x = 0; x < out.width; ++x) copy_pixel<U>(nullptr, row + x * out.stride_w, b.channels, false);
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
    fetch_ahead(input + x);
    fetch_ahead(indices + x);
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
    fetch_ahead(input + c);
    fetch_ahead(indices + c);
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
      if (b.end == rows) clear_rows<U>(out, b, 2 * rows, out.height);
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

// Asks for the cache lines of `count` elements, `ahead` of p: wherever that is, nothing is read.
template <class U>
SEGOPS_INLINE void prefetch(const U* p, int64_t ahead, int64_t count) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(ahead) * sizeof(U);
  for (uintptr_t at = 0; at < static_cast<uintptr_t>(count) * sizeof(U); at += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(begin + at));
}

// One plane, or neighbouring channels of an image, whose rows are cleared just before they are reached: then they are still
// in the caches when values follow.
template <class U>
void scatter(const MaxUnpoolFlat& p, const Band& b, const BadIndices& bad) {
  const Planes out = p.output;
  const uint64_t width = static_cast<uint64_t>(out.width), pixels = width * static_cast<uint64_t>(out.height);
  const int64_t windows = p.input.width, from_step = p.input.stride_w, index_step = p.indices.stride_w, step = out.stride_w;
  const int64_t channels = b.channels;
  const bool dense = out.stride_h == out.width * step;
  U* const plane = row_of<U>(out, b, 0);
  constexpr uint64_t kAtOnce = 4096 / sizeof(U);
  const uint64_t rows_at_once = kAtOnce / (width * static_cast<uint64_t>(channels) + 1) + 1;
  uint64_t ready = 0;  // all before it is cleared
  // Negative ones are beyond all.
  const auto is_bad = [&](uint64_t index, int64_t row, int64_t column, int64_t c) {
    if (index >= pixels) {
      const int64_t position = ((b.n * out.channels + b.c + c) * p.input.height + row) * windows + column;
      bad.note(b.worker, position, static_cast<int64_t>(index));
      return true;
    }
    const uint64_t least = index / width + rows_at_once, all = static_cast<uint64_t>(out.height);
    const uint64_t rows = least < all ? least : all;
    clear_rows<U>(out, b, static_cast<int64_t>(ready / width), static_cast<int64_t>(rows));
    ready = rows * width;
    return false;
  };
  const auto pixel = [&](uint64_t index) {
    return dense ? plane + static_cast<int64_t>(index) * step
                 : plane + static_cast<int64_t>(index / width) * out.stride_h + static_cast<int64_t>(index % width) * step;
  };
  for (int64_t row = 0; row < p.input.height; ++row) {
    const U* from = row_of<const U>(p.input, b, row);
    const int64_t* indices = row_of<const int64_t>(p.indices, b, row);
    for (int64_t column = 0; column < windows; ++column, from += from_step, indices += index_step) {
      const auto move = [&](int64_t c) {
        const uint64_t index = static_cast<uint64_t>(indices[c]);
        if (index >= ready && is_bad(index, row, column, c)) return;
        pixel(index)[c] = from[c];
      };
      if (channels == 1) {
        move(0);
        continue;
      }
      prefetch(indices, 2 * index_step, channels);
      for (int64_t c = 0; c < channels; ++c) move(c);
    }
  }
  if (ready < pixels) clear_rows<U>(out, b, static_cast<int64_t>(ready / width), out.height);
}

// How many neighbouring channels of dense pixels one worker takes: whole cache lines, as many as leave something to share
// out.
inline int64_t channels_at_once(const Planes& out, int64_t element) {
  constexpr int64_t kItems = 4;
  const int64_t line = 64 / element, lines = (out.channels + line - 1) / line, parts = kItems / (out.batch + 1) + 1;
  return (lines + parts - 1) / parts * line;
}

// T: what duplicates are added in, where kSum.
template <class Element, class T, bool kSum>
Status unpool_flat(const MaxUnpoolFlat& p, const BadIndices& bad, const Parallel& parallel) {
  const Planes& out = p.output;
  const int64_t pixels = out.height * out.width;
  const int64_t own = kSum ? (pixels * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64 : 0;
  const Memory scratch(parallel.workers * own, false);
  if (!scratch.data) return Status::out_of_memory;
  const bool together = !kSum && both_channels_last(p.input, out);
  const Untiled<Element> untiled(p, together);
  if (!untiled.allocated()) return Status::out_of_memory;
  if constexpr (!kSum) untiled.try_tiles(p, parallel);
  const int64_t group = together ? channels_at_once(out, sizeof(Element)) : 1;
  for_each_plane(out, group, parallel, [&](const Band& b) {
    if (!kSum && !untiled.holds(b)) return;
    if constexpr (!kSum) {
      scatter<Element>(p, b, bad);
    } else {
      T* const sums = reinterpret_cast<T*>(scratch.data + b.worker * own);
      __builtin_memset(static_cast<void*>(sums), 0, static_cast<size_t>(own));
      for (int64_t row = 0; row < p.input.height; ++row)
        for (int64_t column = 0; column < p.input.width; ++column) {
          const int64_t index = row_of<const int64_t>(p.indices, b, row)[column * p.indices.stride_w];
          if (index < 0 || index >= pixels)
            bad.note(b.worker, ((b.n * out.channels + b.c) * p.input.height + row) * p.input.width + column, index);
          else
            sums[index] += load<1, T>(row_of<const Element>(p.input, b, row) + column * p.input.stride_w)[0];
        }
      Element* const plane = row_of<Element>(out, b, 0);
      for (int64_t i = 0; i < pixels; ++i)
        store<1>(plane + i / out.width * out.stride_h + i % out.width * out.stride_w, load<1, T>(sums + i));
    }
  });
  return Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
