// max_unpool2d in vectors. Compiled into every ISA namespace.
//
// Windows of 2 x 2 that tile the output are walked: each vector of them makes two vectors of two rows. Otherwise an output
// row gathers from the windows that may point at it, phase by phase (the remainder of its columns by the stride), so that
// neighbouring windows are lanes here too. Channels of dense pixels are lanes as they are.
#pragma once
#include "max_unpool_taps.h"

namespace segops::SEGOPS_ISA {
namespace {

// Notes bad indices of window row y where `suspect`, or where taps of whole windows are outside the image.
inline void check_row(const MaxUnpool& p, const Band& b, int64_t y, bool suspect, const BadIndices& bad) {
  const Taps rows = taps_inside(p.vertical, y, p.output.height);
  const int64_t windows = p.input.width;
  if (suspect || rows.begin > 0 || rows.end < p.vertical.kernel) return check_indices(p, b, y, 0, windows, bad);
  const auto whole = [&](int64_t x) {
    return tap_position(p.horizontal, x, 0) >= 0 && tap_position(p.horizontal, x, p.horizontal.kernel - 1) < p.output.width;
  };
  int64_t begin = 0, end = windows;
  while (begin < end && !whole(begin)) ++begin;
  while (end > begin && !whole(end - 1)) --end;
  check_indices(p, b, y, 0, begin, bad);
  check_indices(p, b, y, end, windows, bad);
}

// Whether any of `count` indices (of pixels or of windows) is no tap's.
inline bool any_beyond(const uint8_t* indices, int64_t count, int64_t taps) {
  constexpr int kLanes = SEGOPS_VECTOR_BYTES;
  using V = Vec<uint8_t, kLanes>;
  if (taps > 255) return false;
  uint8_t most = 0;
  int64_t i = 0;
  if (count >= kLanes) {
    V largest{};
    for (; i + kLanes <= count; i += kLanes) {
      const V v = *reinterpret_cast<const Unaligned<uint8_t, kLanes>*>(indices + i);
      largest = v > largest ? v : largest;
    }
    for (int lane = 0; lane < kLanes; ++lane) most = largest[lane] > most ? largest[lane] : most;
  }
  for (; i < count; ++i) most = indices[i] > most ? indices[i] : most;
  return most >= taps;
}

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
    streaming_done();
  });
}

// Whether vectors of `lanes` channels may be stored past the caches.
inline bool streams_pixels(const MaxUnpool& p, int64_t lanes, int64_t element) {
  constexpr int64_t kLine = 64;
  return lanes * element == SEGOPS_VECTOR_BYTES && p.output.channels % lanes == 0 &&
         p.output.stride_w * element % kLine == 0 && worth_streaming(p.output, p.warm, element, true);
}

// Channels as lanes. T: what windows are added in, where kSum.
template <class Element, class T, bool kSum, int kLanes>
void unpool_pixels(const MaxUnpool& p, const BadIndices& bad, const Parallel& parallel) {
  using Number = typename TapNumber<sizeof(T)>::type;
  const Planes& out = p.output;
  const int64_t rows = p.input.height, channels = out.channels;
  const int64_t bytes = out.batch * channels * out.height * out.width * int64_t{sizeof(Element)};
  const bool streaming = !kSum && streams_pixels(p, kLanes, sizeof(Element));
  for_each_band(out, true, rows, bytes, parallel, [&](const Band& b) {
    for (int64_t y = b.begin; y < b.end; ++y) {
      bool suspect = false;
      for (int64_t x = 0; x < p.input.width && !suspect; ++x)
        suspect = any_beyond(row_of<const uint8_t>(p.indices, b, y) + x * p.indices.stride_w, channels,
                             p.vertical.kernel * p.horizontal.kernel);
      check_row(p, b, y, suspect, bad);
    }
    const Element* const input = row_of<const Element>(p.input, b, 0);
    const uint8_t* const indices = row_of<const uint8_t>(p.indices, b, 0);
    // The windows that may point at a row, at a column, and at a pixel, in row-major order.
    struct Reach {
      int64_t window, tap;
    } in_rows[256];
    struct Candidate {
      const Element* value;
      const uint8_t* index;
      Number tap;
    } candidates[256];
    const int64_t end = first_owned(p.vertical, b.end, rows, out.height);
    for (int64_t y = first_owned(p.vertical, b.begin, rows, out.height); y < end; ++y) {
      int64_t row_count = 0;
      for (int64_t ky = p.vertical.kernel - 1; ky >= 0; --ky) {
        const int64_t row = window_of(p.vertical, y, ky, rows);
        if (row >= 0) in_rows[row_count++] = Reach{row, ky};
      }
      for (int64_t x = 0; x < out.width; ++x) {
        Reach in_columns[256];
        int64_t column_count = 0, count = 0;
        for (int64_t kx = p.horizontal.kernel - 1; kx >= 0; --kx) {
          const int64_t column = window_of(p.horizontal, x, kx, p.input.width);
          if (column >= 0) in_columns[column_count++] = Reach{column, kx};
        }
        for (int64_t i = 0; i < row_count; ++i)
          for (int64_t j = 0; j < column_count; ++j) {
            const Reach row = in_rows[i], column = in_columns[j];
            candidates[count++] = Candidate{input + row.window * p.input.stride_h + column.window * p.input.stride_w,
                                            indices + row.window * p.indices.stride_h + column.window * p.indices.stride_w,
                                            static_cast<Number>(row.tap * p.horizontal.kernel + column.tap)};
          }
        Element* const pixel = row_of<Element>(out, b, y) + x * out.stride_w;
        for (int64_t i = 0; i < channels; i += kLanes) {
          const int64_t c = i < channels - kLanes ? i : channels - kLanes;
          Vec<T, kLanes> result{};
          for (int64_t j = 0; j < count; ++j) {
            const Candidate& one = candidates[j];
            const auto points = load_indices<Number, kLanes>(one.index + c) == broadcast<kLanes, Number>(one.tap);
            const Vec<T, kLanes> value = load<kLanes, T>(one.value + c);
            if constexpr (kSum)
              result += points ? value : Vec<T, kLanes>{};
            else
              result = points ? value : result;
          }
          if constexpr (kSum)
            store<kLanes>(pixel + c, result);
          else
            put<Element, kLanes>(pixel + c, result, streaming);
        }
      }
    }
    streaming_done();
  });
}

// Rows of the output by phase: column x is at place (x + padding) / stride of phase (x + padding) % stride. What tap kx of
// neighbouring windows gives is neighbouring places of one phase.
template <class Element, class T, bool kSum>
class PhaseRow {
 public:
  using Number = typename TapNumber<sizeof(T)>::type;
  static constexpr int kLanes = kNativeLanes<T>;

  explicit PhaseRow(const MaxUnpool& p) : axis_(p.horizontal), windows_(p.input.width), width_(p.output.width) {
    const int64_t reached = windows_ + (axis_.kernel - 1) * axis_.dilation / axis_.stride;
    const int64_t read = (width_ + axis_.padding) / axis_.stride + 1;
    extent_ = (reached > read ? reached : read) + 2 * kLanes;
  }
  int64_t bytes() const { return (axis_.stride * extent_ * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64; }
  void clear(T* phases) const { __builtin_memset(static_cast<void*>(phases), 0, static_cast<size_t>(bytes())); }

  // The windows of one row whose index is `tap`, of column tap kx.
  void add(T* phases, const Element* input, const uint8_t* indices, int64_t kx, int64_t tap) const {
    T* const to = phases + kx * axis_.dilation % axis_.stride * extent_ + kx * axis_.dilation / axis_.stride;
    int64_t x = 0;
    for (; x + kLanes <= windows_; x += kLanes) add<kLanes>(to + x, input + x, indices + x, tap);
    for (; x < windows_; ++x) add<1>(to + x, input + x, indices + x, tap);
  }

  void write(const T* phases, Element* row) const {
    int64_t x = 0;
    if (axis_.stride == 1)
      for (; x + kLanes <= width_; x += kLanes) put_vector(row + x, vector(phases + axis_.padding + x));
    if (axis_.stride == 2) x = write_two(phases, row);
    for (; x < width_; ++x) {
      const int64_t at = x + axis_.padding;
      const T* const value = phases + at % axis_.stride * extent_ + at / axis_.stride;
      if constexpr (kSum)
        store<1>(row + x, load<1, T>(value));
      else
        row[x] = *value;
    }
  }

 private:
  template <int kCount>
  SEGOPS_MEMBER void add(T* to, const Element* input, const uint8_t* indices, int64_t tap) const {
    using V = Vec<T, kCount>;
    const auto points = load_indices<Number, kCount>(indices) == broadcast<kCount, Number>(static_cast<Number>(tap));
    const V value = load<kCount, T>(input), before = *reinterpret_cast<const Unaligned<T, kCount>*>(to);
    if constexpr (kSum)
      *reinterpret_cast<Unaligned<T, kCount>*>(to) = before + (points ? value : V{});
    else
      *reinterpret_cast<Unaligned<T, kCount>*>(to) = points ? value : before;
  }

  static SEGOPS_MEMBER Vec<T, kLanes> vector(const T* p) { return *reinterpret_cast<const Unaligned<T, kLanes>*>(p); }
  static SEGOPS_MEMBER void put_vector(Element* p, Vec<T, kLanes> v) {
    if constexpr (kSum)
      store<kLanes>(p, v);
    else
      put<Element, kLanes>(p, v, false);
  }

  // The two phases in turn, beginning with that of column 0; how many columns.
  int64_t write_two(const T* phases, Element* row) const {
    const int64_t first = axis_.padding % 2, at = axis_.padding / 2;
    const T *const even = phases + first * extent_ + at, *const odd = phases + (1 - first) * extent_ + at + first;
    Vec<Number, kLanes> low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = static_cast<Number>(i / 2 + i % 2 * kLanes);
      high[i] = static_cast<Number>(kLanes / 2 + i / 2 + i % 2 * kLanes);
    }
    int64_t x = 0;
    for (; x + 2 * kLanes <= width_; x += 2 * kLanes) {
      const Vec<T, kLanes> a = vector(even + x / 2), b = vector(odd + x / 2);
      put_vector(row + x, permute<T, kLanes>(a, b, low));
      put_vector(row + x + kLanes, permute<T, kLanes>(a, b, high));
    }
    return x;
  }

  WindowAxis axis_;
  int64_t windows_, width_, extent_;
};

template <class Element, class T, bool kSum>
Status unpool_rows(const MaxUnpool& p, const BadIndices& bad, const Parallel& parallel) {
  const Planes& out = p.output;
  const PhaseRow<Element, T, kSum> phase_row(p);
  const int64_t own = phase_row.bytes(), taps = p.vertical.kernel * p.horizontal.kernel;
  const Memory scratch(parallel.workers * own, false);
  if (!scratch.data) return Status::out_of_memory;
  const int64_t rows = p.input.height, bytes = out.batch * out.channels * out.height * out.width * int64_t{sizeof(Element)};
  for_each_band(out, false, rows, bytes, parallel, [&](const Band& b) {
    T* const phases = reinterpret_cast<T*>(scratch.data + b.worker * own);
    for (int64_t y = b.begin; y < b.end; ++y)
      check_row(p, b, y, any_beyond(row_of<const uint8_t>(p.indices, b, y), p.input.width, taps), bad);
    const int64_t end = first_owned(p.vertical, b.end, rows, out.height);
    for (int64_t y = first_owned(p.vertical, b.begin, rows, out.height); y < end; ++y) {
      phase_row.clear(phases);
      for (int64_t ky = p.vertical.kernel - 1; ky >= 0; --ky) {
        const int64_t row = window_of(p.vertical, y, ky, rows);
        for (int64_t kx = p.horizontal.kernel - 1; kx >= 0 && row >= 0; --kx)
          phase_row.add(phases, row_of<const Element>(p.input, b, row), row_of<const uint8_t>(p.indices, b, row), kx,
                        ky * p.horizontal.kernel + kx);
      }
      phase_row.write(phases, row_of<Element>(out, b, y));
    }
  });
  return Status::ok;
}

template <class Element, class T, bool kSum>
Status unpool_image(const MaxUnpool& p, const BadIndices& bad, const Parallel& parallel) {
  constexpr int kNative = kNativeLanes<T>, kLeast = 16 / sizeof(T);
  const bool last = both_channels_last(p.input, p.output) && p.indices.stride_c == 1;
  const bool dense = p.input.stride_w == 1 && p.output.stride_w == 1 && p.indices.stride_w == 1;
  if constexpr (!kSum) {
    const bool pairs = is_pair(p.vertical) && is_pair(p.horizontal);
    if (pairs && dense && p.input.width >= kNative && p.output.width >= 2 * kNative) {
      const int64_t tiled = p.output.width / 2, whole = p.input.width < tiled ? p.input.width : tiled;
      const bool streaming = whole % kNative == 0 && worth_streaming(p.output, p.warm, sizeof(Element), false);
      unpool_pairs<Element>(p, false, bad, parallel, [&](auto input, auto indices, int64_t count, auto upper, auto lower) {
        return spread_pairs<Element, kNative>(input, indices, count, upper, lower, streaming);
      });
      return Status::ok;
    }
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
  if (dense && may_split(p.vertical, p.horizontal)) return unpool_rows<Element, T, kSum>(p, bad, parallel);
  if (last && p.output.channels >= kNative)
    unpool_pixels<Element, T, kSum, kNative>(p, bad, parallel);
  else if (last && p.output.channels >= kLeast)
    unpool_pixels<Element, T, kSum, kLeast>(p, bad, parallel);
  else
    unpool_singly<Element, T, kSum>(p, bad, parallel);
  return Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
