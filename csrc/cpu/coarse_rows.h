// Rows of coarse logits on their way to target rows and back, for losses that interpolate where they are used: a tile of a
// few target rows between the same two rows of logits, a strip of columns wide, so that all of it is in the first-level
// cache. [C, ...] are the channels that are handled together.
#pragma once
#include "coarse_columns.h"
#include "segops/interpolate.h"
#include "segops/planes.h"
#include "staging.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {

constexpr int64_t kTileRows = 4;  // at most

// How coarse logits are shared out: an item is a band of rows of one of `planes` that are cut alike, an image's classes
// together or a channel alone.
struct Bands {
  const LinearAxis& vertical;
  int64_t rows, per_plane, items;

  // What an item has: rows [first, last) of the logits, and the target rows [begin, end) from there on.
  struct Part {
    int64_t plane, first, last, begin, end;
  };

  Bands(int64_t planes, const LinearAxis& axis) : vertical(axis) {
    // At most about 64 items, but rows enough to be worth the one or two that neighbours share.
    constexpr int64_t kItems = 64, kFew = 8, kLeast = 4, kMost = 16;
    const int64_t wanted = planes * axis.in / kItems, few = planes * axis.in / kFew;
    const int64_t least = few < 1 ? 1 : few < kLeast ? few : kLeast;
    rows = wanted < least ? least : wanted > kMost ? kMost : wanted;
    per_plane = (axis.in + rows - 1) / rows;
    items = planes * per_plane;
  }

  bool meet() const { return per_plane > 1; }

  Part part(int64_t item) const {
    const int64_t first = item % per_plane * rows, last = first + rows < vertical.in ? first + rows : vertical.in;
    return {item / per_plane, first, last, first_output(vertical, first), first_output(vertical, last)};
  }
};

// How many target rows from y on are between the same two rows of logits, at most `most` of them and before `end`.
inline int64_t rows_together(const LinearAxis& vertical, int64_t y, int64_t end, int64_t most) {
  const int64_t low = linear_tap(vertical, y).low;
  int64_t count = 1;
  while (count < most && y + count < end && linear_tap(vertical, y + count).low == low) ++count;
  return count;
}

// The logits of one target row between two rows that are interpolated to its columns.
template <class T>
struct BetweenRow {
  static constexpr bool kSeveralRows = false;
  const T *lower, *upper;  // [C, stride]
  int64_t stride;
  T keep, share;

  template <int kLanes, class>
  SEGOPS_MEMBER Vec<T, kLanes> at(int64_t c, int64_t i) const {
    return keep * load<kLanes, T>(lower + c * stride + i) + share * load<kLanes, T>(upper + c * stride + i);
  }
  BetweenRow ahead(int64_t, int64_t) const { return *this; }
  SEGOPS_MEMBER void prefetch(int, int64_t&, int64_t) const {}
};

// Those of a tile: row k is at pixels [k * width, (k + 1) * width).
template <class T>
struct Between {
  static constexpr bool kSeveralRows = true;
  const T *lower, *upper;
  int64_t stride, width, rows;
  T keep[kTileRows], share[kTileRows];
  T step;     // of the weights, if they are evenly spaced
  bool even;  // they are (not where coordinates are cut off at the border), and there are enough of them to gain by it

  Between(const T* low, const T* high, int64_t pitch, int64_t columns, const LinearAxis& vertical, int64_t y, int64_t count)
      : lower(low), upper(high), stride(pitch), width(columns), rows(count) {
    double weight[kTileRows];
    for (int64_t k = 0; k < rows; ++k) {
      weight[k] = linear_tap(vertical, y + k).weight;
      keep[k] = static_cast<T>(1. - weight[k]);
      share[k] = static_cast<T>(weight[k]);
    }
    const double distance = rows > 1 ? weight[1] - weight[0] : 0.;
    step = static_cast<T>(distance);
    even = rows > 2;
    for (int64_t k = 2; k < rows; ++k) {
      const double off = weight[k] - weight[k - 1] - distance;
      even &= off < 1e-9 && off > -1e-9;
    }
  }

  BetweenRow<T> row(int64_t k) const { return BetweenRow<T>{lower, upper, stride, keep[k], share[k]}; }

  template <int kLanes, class>
  SEGOPS_MEMBER Vec<T, kLanes> at(int64_t c, int64_t i) const {
    const int64_t k = static_cast<uint32_t>(i) / static_cast<uint32_t>(width);
    return row(k).template at<kLanes, T>(c, i - k * width);
  }
};

// Two neighbouring rows of logits, interpolated to a strip's columns.
template <class T, class In>
struct Interpolation {
  const ConstPlanes& planes;
  int64_t channels;
  const Columns<T>& columns;
  int64_t capacity;
  T* source;   // [C, source_pitch]
  T* wide[2];  // [C, capacity]: the lower and the upper row
  int64_t image, channel, strip, held;

  static int64_t bytes(int64_t classes, int64_t capacity) {
    return classes * (Columns<T>::source_pitch(capacity) + 2 * capacity) * static_cast<int64_t>(sizeof(T));
  }

  Interpolation(const ConstPlanes& p, int64_t c, const Columns<T>& cs, int64_t most, char* memory)
      : planes(p), channels(c), columns(cs), capacity(most), image(0), channel(0), strip(0), held(-1) {
    source = reinterpret_cast<T*>(memory);
    wide[0] = source + channels * Columns<T>::source_pitch(capacity);
    wide[1] = wide[0] + channels * capacity;
  }

  // A strip of `channels` channels from channel c on of image n.
  void begin(int64_t n, int64_t c, int64_t s) {
    image = n;
    channel = c;
    strip = s;
    held = -1;
  }

  void widen(int64_t row, T* to) const {
    const ConstPlanes& p = planes;
    const Strip own = columns.strip(strip);
    const int64_t pitch = Columns<T>::source_pitch(capacity);
    const In* from =
        static_cast<const In*>(p.data) + image * p.stride_n + channel * p.stride_c + row * p.stride_h + own.low * p.stride_w;
    stage_rows(from, p.stride_c, p.stride_w, channels, own.span, own.span, source, pitch);
    for (int64_t c = 0; c < channels; ++c) source[c * pitch + own.span] = source[c * pitch + own.span - 1];
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
    const In* const next = from + p.stride_h;
    for (int64_t c = 0; p.stride_w == 1 && row + 1 < p.height && c < channels; ++c)
      for (int64_t x = 0; x < own.span; x += kLine) __builtin_prefetch(next + c * p.stride_c + x);
    columns.widen(strip, source, pitch, to, channels);
  }

  // The logits of target rows that are all between the rows of the first one's tap.
  Between<T> at(const LinearAxis& vertical, int64_t y, int rows) {
    const LinearTap tap = linear_tap(vertical, y);
    if (held >= 0 && tap.low == held + 1) {
      T* const lower = wide[0];
      wide[0] = wide[1];
      wide[1] = lower;
    } else if (tap.low != held) {
      widen(tap.low, wide[0]);
    }
    if (tap.low != held && tap.high != tap.low) widen(tap.high, wide[1]);
    held = tap.low;
    const T* const upper = tap.high != tap.low ? wide[1] : wide[0];
    return Between<T>(wide[0], upper, capacity, columns.strip(strip).padded, vertical, y, rows);
  }
};

// The transpose of Between: what a tile's gradient adds to the sums of the lower and of the upper row.
template <class T>
struct ToSums {
  static constexpr bool kSeveralRows = true;
  T *lower, *upper;  // [C, stride]
  int64_t stride;
  const Between<T>& x;

  // Adds the gradient of classes c to c + kRows, which at(k, i, v) tells of row k's pixel i and those beside it.
  template <int kRows, int kLanes, class V, class At>
  SEGOPS_MEMBER void sum(int64_t c, const At& at) const {
    const int64_t width = x.width, rows = x.rows;
    const bool last = x.lower == x.upper;  // there is no upper row
    for (int64_t i = 0; i < width; i += kLanes) {
      V low[kRows], high[kRows];
      for (int r = 0; r < kRows; ++r) {
        low[r] = load<kLanes, T>(lower + (c + r) * stride + i);
        high[r] = load<kLanes, T>(upper + (c + r) * stride + i);
      }
      for (int64_t k = 0; k < rows; ++k) {
        V v[kRows];
        at(k, i, v);
        const T keep = last ? T(1) : x.keep[k], share = last ? T(0) : x.share[k];
        for (int r = 0; r < kRows; ++r) {
          low[r] += keep * v[r];
          high[r] += share * v[r];
        }
      }
      for (int r = 0; r < kRows; ++r) {
        store<kLanes>(lower + (c + r) * stride + i, low[r]);
        store<kLanes>(upper + (c + r) * stride + i, high[r]);
      }
    }
  }
};

// What the target rows from row `begin` of the logits to row `end` give: sums of target rows that are not finished, and the
// gradients of the rows of logits. Row `begin` misses what the band before it has in its row `end`.
template <class T>
struct Band {
  const ColumnSums<T>& columns;
  int64_t capacity, classes, width, height, pitch;
  int64_t begin, end;
  T* rows;     // [end - begin + 1, C, pitch]
  T* sums[2];  // [C, capacity]: what target rows give to the lower and the upper row

  static int64_t pitch_of(int64_t width) { return width + kNativeLanes<T>; }
  static int64_t bytes(int64_t classes, int64_t capacity, int64_t width, int64_t rows) {
    return classes * (2 * capacity + (rows + 1) * pitch_of(width)) * static_cast<int64_t>(sizeof(T));
  }

  Band(const ColumnSums<T>& cs, int64_t most, int64_t channels, const ConstPlanes& p, int64_t first, int64_t last,
       char* memory)
      : columns(cs),
        capacity(most),
        classes(channels),
        width(p.width),
        height(p.height),
        pitch(pitch_of(width)),
        begin(first),
        end(last) {
    sums[0] = reinterpret_cast<T*>(memory);
    sums[1] = sums[0] + classes * capacity;
    rows = sums[1] + classes * capacity;
    __builtin_memset(memory, 0, static_cast<size_t>(bytes(classes, capacity, width, end - begin)));
  }

  ToSums<T> at(const Between<T>& x) const { return ToSums<T>{sums[0], sums[1], capacity, x}; }

  // Adds a gradient that is in memory, [C, staged_pitch].
  void add(const T* staged, int64_t staged_pitch, const Between<T>& x) const {
    constexpr int kLanes = kNativeLanes<T>;
    using V = Vec<T, kLanes>;
    for (int64_t c = 0; c < classes; ++c)
      at(x).template sum<1, kLanes, V>(
          c, [&](int64_t k, int64_t i, V(&v)[1]) { v[0] = load<kLanes, T>(staged + c * staged_pitch + k * x.width + i); });
  }

  T* row(int64_t number) const { return rows + (number - begin) * classes * pitch; }

  // No further target row reads row `number`: its sums are finished, those of the row above become the lower ones.
  void advance(int64_t strip, int64_t number) {
    if (number >= begin && number < height) columns.add_narrowed(strip, sums[0], row(number), pitch, classes);
    T* const finished = sums[0];
    sums[0] = sums[1];
    sums[1] = finished;
    __builtin_memset(finished, 0, static_cast<size_t>(classes * capacity) * sizeof(T));
  }
};

// The rows at which bands meet: row `begin` and row `end` of each item, added when both are there. In the type of the sums,
// so that 16-bit gradients are rounded once.
template <class T>
class Seams {
 public:
  Seams(const Bands& bands, int64_t elements)
      : elements_(elements),
        rows_((bands.meet() ? bands.items : 0) * 2 * elements * static_cast<int64_t>(sizeof(T)), false) {}
  bool allocated() const { return rows_.data; }

  void keep(int64_t item, const Band<T>& band) const {
    __builtin_memcpy(row(item, 0), band.row(band.begin), static_cast<size_t>(elements_) * sizeof(T));
    __builtin_memcpy(row(item, 1), band.row(band.end), static_cast<size_t>(elements_) * sizeof(T));
  }

  T* join(int64_t item) const {
    T* const sum = row(item, 0);
    const T* const before = row(item - 1, 1);
    for (int64_t i = 0; i < elements_; ++i) sum[i] += before[i];
    return sum;
  }

 private:
  T* row(int64_t item, int which) const { return reinterpret_cast<T*>(rows_.data) + (2 * item + which) * elements_; }
  const int64_t elements_;
  const Memory rows_;
};

// Fetches the strip's part of a row of the gradient that is written later: stores to lines that are far away are slow.
template <class In>
void prefetch_row(const Planes& p, int64_t n, int64_t channel, int64_t channels, int64_t number, const Strip& strip) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(In));
  const In* const row =
      static_cast<const In*>(p.data) + n * p.stride_n + channel * p.stride_c + number * p.stride_h + strip.low;
  for (int64_t c = 0; p.stride_w == 1 && c < channels; ++c)
    for (int64_t x = 0; x < strip.span; x += kLine) __builtin_prefetch(row + c * p.stride_c + x, 1);
}

template <class In, class T>
void write_row(const T* row, int64_t pitch, const Planes& p, int64_t n, int64_t channel, int64_t channels, int64_t number) {
  In* const to = static_cast<In*>(p.data) + n * p.stride_n + channel * p.stride_c + number * p.stride_h;
  unstage_rows(row, pitch, channels, p.width, to, p.stride_c, p.stride_w);
}

// The rows at which the bands of a gradient meet, `channels` of them together, when every band is done.
template <class In, class T>
void write_seams(const Seams<T>& seams, const Bands& bands, int64_t pitch, const Planes& p, int64_t channels,
                 const Parallel& parallel, bool serial) {
  for_each_item(parallel, bands.meet() ? bands.items : 0, serial, [&](int64_t item, int32_t) {
    const Bands::Part part = bands.part(item);
    const int64_t channel = part.plane * channels;
    if (part.first > 0)
      write_row<In>(seams.join(item), pitch, p, channel / p.channels, channel % p.channels, channels, part.first);
  });
}

}  // namespace segops::SEGOPS_ISA
