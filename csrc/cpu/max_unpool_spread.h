// max_unpool2d in vectors. Compiled into every ISA namespace.
//
// Windows of 2 x 2 that tile the output are walked: each vector of them makes two vectors of two rows. Other windows are
// gathered from, or, where very many share an element, scattered.
#pragma once
#include "max_unpool_pairs.h"
#include "max_unpool_scatter.h"

namespace segops::SEGOPS_ISA {
namespace {

// 2 x 2 windows that tile: the rows `upper` and `lower` from `count` windows, at least kLanes. Tells whether an index is
// bad.
template <class U, int kLanes>
bool spread_pairs(const U* input, const uint8_t* indices, int64_t count, U* upper, U* lower, bool streaming) {
  using Number = typename TapNumber<sizeof(U)>::type;
  using V = Vec<U, kLanes>;
  using N = Vec<Number, kLanes>;
  N lanes[2], taps;
  for (int i = 0; i < kLanes; ++i) {
    lanes[0][i] = static_cast<Number>(i / 2);
    lanes[1][i] = static_cast<Number>(kLanes / 2 + i / 2);
    taps[i] = static_cast<Number>(i % 2);
  }
  N seen{};
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t x = at < count - kLanes ? at : count - kLanes;
    fetch_ahead(input + x);
    fetch_ahead(indices + x, 1024);
    const V value = *reinterpret_cast<const Unaligned<U, kLanes>*>(input + x);
    const N number = load_indices<Number, kLanes>(indices + x);
    seen |= number;
    V rows[2][2];
    for (int half = 0; half < 2; ++half) {
      const V twice = permute<U, kLanes>(value, lanes[half]);
      const N from = permute<Number, kLanes>(number, lanes[half]);
      for (int row = 0; row < 2; ++row) rows[row][half] = from == taps + static_cast<Number>(2 * row) ? twice : V{};
    }
    for (int half = 0; half < 2; ++half) put<U, kLanes>(upper + 2 * x + half * kLanes, rows[0][half], streaming);
    for (int half = 0; half < 2; ++half) put<U, kLanes>(lower + 2 * x + half * kLanes, rows[1][half], streaming);
  }
  Number all = 0;
  for (int i = 0; i < kLanes; ++i) all |= seen[i];
  return all > 3;
}

// The same from pixels of `channels`, at least kLanes: `count` windows.
template <class U, int kLanes>
bool spread_pixel_pairs(const MaxUnpool& p, const U* input, const uint8_t* indices, int64_t count, U* upper, U* lower,
                        bool streaming) {
  using Number = typename TapNumber<sizeof(U)>::type;
  using V = Vec<U, kLanes>;
  using N = Vec<Number, kLanes>;
  const int64_t channels = p.output.channels, next = p.output.stride_w;
  N seen{};
  for (int64_t x = 0; x < count; ++x) {
    for (int64_t i = 0; i < channels; i += kLanes) {
      const int64_t c = i < channels - kLanes ? i : channels - kLanes;
      fetch_ahead(input + c);
      fetch_ahead(indices + c, 1024);
      const V value = *reinterpret_cast<const Unaligned<U, kLanes>*>(input + c);
      const N number = load_indices<Number, kLanes>(indices + c);
      seen |= number;
      const auto tap = [&](Number wanted) { return number == broadcast<kLanes, Number>(wanted) ? value : V{}; };
      put<U, kLanes>(upper + c, tap(0), streaming);
      put<U, kLanes>(upper + next + c, tap(1), streaming);
      put<U, kLanes>(lower + c, tap(2), streaming);
      put<U, kLanes>(lower + next + c, tap(3), streaming);
    }
    input += p.input.stride_w;
    indices += p.indices.stride_w;
    upper += 2 * next;
    lower += 2 * next;
  }
  Number all = 0;
  for (int i = 0; i < kLanes; ++i) all |= seen[i];
  return all > 3;
}

// spread(input, indices, windows, upper, lower) makes two rows and tells whether an index is bad. of_pixels: of dense
// pixels.
template <class U, class Spread>
void unpool_pairs(const MaxUnpool& p, bool of_pixels, const BadIndices& bad, const Parallel& parallel,
                  const Spread& spread) {
  const Planes& out = p.output;
  const int64_t windows = p.input.width, whole = windows < out.width / 2 ? windows : out.width / 2;
  const int64_t rows = p.input.height, bytes = out.batch * out.channels * out.height * out.width * int64_t{sizeof(U)};
  for_each_band(out, of_pixels, rows, bytes, parallel, [&](const Band& b) {
    const auto rest = [&](int64_t y, int64_t begin) {
      for (int64_t x = begin; x < out.width; ++x)
        for (int64_t c = 0; c < b.channels; ++c)
          row_of<U>(out, b, y)[x * out.stride_w + c * out.stride_c] =
              unpooled<U, U, false>(p, row_of<const U>(p.input, b, 0) + c * p.input.stride_c,
                                    row_of<const uint8_t>(p.indices, b, 0) + c * p.indices.stride_c, y, x);
    };
    for (int64_t y = b.begin; y < b.end; ++y) {
      if (2 * y + 1 >= out.height) {
        check_row(p, b, y, true, bad);
        for (int64_t row = 2 * y; row < out.height; ++row) rest(row, 0);
        continue;
      }
      U* const upper = row_of<U>(out, b, 2 * y);
      const bool suspect =
          spread(row_of<const U>(p.input, b, y), row_of<const uint8_t>(p.indices, b, y), whole, upper, upper + out.stride_h);
      check_row(p, b, y, suspect, bad);
      rest(2 * y, 2 * whole);
      rest(2 * y + 1, 2 * whole);
    }
    if (b.end == rows)
      for (int64_t y = 2 * rows; y < out.height; ++y) rest(y, 0);
  });
}

template <class Element, class T, bool kSum>
Status unpool_image(const MaxUnpool& p, const BadIndices& bad, const Parallel& parallel) {
  constexpr int kNative = kNativeLanes<T>, kLeast = 16 / sizeof(T);
  const bool last = both_channels_last(p.input, p.output) && p.indices.stride_c == 1;
  const bool dense = p.input.stride_w == 1 && p.output.stride_w == 1 && p.indices.stride_w == 1;
  if constexpr (!kSum) {
    const bool pairs = is_pair(p.vertical) && is_pair(p.horizontal);
    // Windows of a row whose both columns are in the output.
    const int64_t width = pairs && dense ? (2 * p.input.width < p.output.width ? p.input.width : p.output.width / 2) : 0;
    const auto rows = [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::kValue;
      const bool streaming =
          kLanes == kNative && width % kNative == 0 && worth_streaming(p.output, p.warm, sizeof(Element), false);
      unpool_pairs<Element>(p, false, bad, parallel, [&](auto input, auto indices, int64_t count, auto upper, auto lower) {
        return spread_pairs<Element, kLanes>(input, indices, count, upper, lower, streaming);
      });
      return Status::ok;
    };
    if (width >= kNative) return rows(Lanes<kNative>{});
    if (width >= kLeast) return rows(Lanes<kLeast>{});
    const auto pixels = [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::kValue;
      const bool streaming = streams_pixels(p, kLanes, sizeof(Element));
      unpool_pairs<Element>(p, true, bad, parallel, [&](auto input, auto indices, int64_t count, auto upper, auto lower) {
        return spread_pixel_pairs<Element, kLanes>(p, input, indices, count, upper, lower, streaming);
      });
      return Status::ok;
    };
    if (pairs && last && p.output.channels >= kNative) return pixels(Lanes<kNative>{});
    if (pairs && last && p.output.channels >= kLeast) return pixels(Lanes<kLeast>{});
  }
  if (const Scatter<Element, T, kSum> scatter(p); scatter.pays()) return scatter.run(bad, parallel);
  const bool told = sizeof(T) > 1 || p.vertical.kernel * p.horizontal.kernel < 256;
  if (dense && told && may_split(p.vertical, p.horizontal)) return gather_rows<Element, T, kSum>(p, bad, parallel);
  if (last && p.output.channels >= kNative) return gather_pixels<Element, T, kSum, kNative>(p, bad, parallel);
  if (last && p.output.channels >= kLeast) return gather_pixels<Element, T, kSum, kLeast>(p, bad, parallel);
  unpool_singly<Element, T, kSum>(p, bad, parallel);
  return Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
