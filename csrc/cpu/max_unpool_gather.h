// max_unpool2d for any window: each element of the output is gathered from the windows that may point at it. Compiled into
// every ISA namespace.
//
// Neighbouring windows of a dense row (channels of a dense pixel) are lanes of a vector. What windows give to a row of the
// output is neighbouring places of one phase: the remainder of its columns by the stride.
#pragma once
#include "max_unpool_taps.h"

namespace segops::SEGOPS_ISA {
namespace {

// Notes bad indices of window row y where `suspect`, or where taps of whole windows are outside the image.
inline void check_row(const MaxUnpool& p, const Band& b, int64_t y, bool suspect, const BadIndices& bad) {
  const int64_t windows = p.input.width;
  const auto whole = [](const WindowAxis& axis, int64_t window, int64_t size) {
    return tap_position(axis, window, 0) >= 0 && tap_position(axis, window, axis.kernel - 1) < size;
  };
  if (suspect || !whole(p.vertical, y, p.output.height)) return check_indices(p, b, y, 0, windows, bad);
  int64_t begin = 0, end = windows;
  while (begin < end && !whole(p.horizontal, begin, p.output.width)) ++begin;
  while (end > begin && !whole(p.horizontal, end - 1, p.output.width)) --end;
  if (begin > 0) check_indices(p, b, y, 0, begin, bad);
  if (end < windows) check_indices(p, b, y, end, windows, bad);
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

// What a vector of windows gives to those of their elements that are tap `tap`.
template <class Value, class Index, class Number>
struct Giver {
  const Value* values;
  const Index* indices;
  Number tap;
};

// The elements at `at` of `count` givers, in row-major order of the windows. kCount: if not 0, what `count` is. T: what
// windows are added in, where kSum.
template <int kCount, class T, int kLanes, bool kSum, class Value, class Index, class Number>
SEGOPS_INLINE Vec<T, kLanes> gather(const Giver<Value, Index, Number>* givers, int64_t count, int64_t at) {
  Vec<T, kLanes> result{};
  const auto add = [&](const Giver<Value, Index, Number>& giver) {
    Vec<Number, kLanes> index;
    if constexpr (sizeof(Index) == 1)
      index = load_indices<Number, kLanes>(giver.indices + at);
    else
      index = *reinterpret_cast<const Unaligned<Number, kLanes>*>(giver.indices + at);
    const auto points = index == broadcast<kLanes, Number>(giver.tap);
    const Vec<T, kLanes> value = load<kLanes, T>(giver.values + at);
    if constexpr (kSum)
      result += points ? value : Vec<T, kLanes>{};
    else
      result = points ? value : result;
  };
  if constexpr (kCount != 0) {
#pragma GCC unroll 9
    for (int i = 0; i < kCount; ++i) add(givers[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) add(givers[i]);
  }
  return result;
}

// Calls body(Fixed<count>) for the counts that windows of 3 x 3 have in the midst of an image, body(Fixed<0>) for others.
template <class Body>
SEGOPS_INLINE void with_count(int64_t count, const Body& body) {
  switch (count) {
    case 1: return body(Fixed<1>{});
    case 2: return body(Fixed<2>{});
    case 4: return body(Fixed<4>{});
    case 9: return body(Fixed<9>{});
    default: return body(Fixed<0>{});
  }
}

template <bool kSum, int kLanes, class Element, class T>
SEGOPS_INLINE void put_gathered(Element* p, Vec<T, kLanes> v, bool streaming) {
  if constexpr (!kSum)
    put<Element, kLanes>(p, v, streaming);
  else if (streaming)
    store_streaming<kLanes, Element, T>(p, v);
  else
    store<kLanes>(p, v);
}

// The windows that may point at each position of an axis, in order.
class Reaching {
 public:
  struct Window {
    int64_t window, tap;
  };

  Reaching(const WindowAxis& axis, int64_t size, int64_t windows)
      : size_(size),
        memory_((size + 1) * int64_t{sizeof(int64_t)} + windows * axis.kernel * int64_t{sizeof(Window)}, false) {
    if (!memory_.data) return;
    Window* const all = windows_of(0);
    int64_t count = 0;
    for (int64_t x = 0; x < size; ++x) {
      first()[x] = count;
      for (int64_t tap = axis.kernel - 1; tap >= 0; --tap) {
        const int64_t window = window_of(axis, x, tap, windows);
        if (window >= 0) all[count++] = Window{window, tap};
      }
    }
    first()[size] = count;
  }
  bool allocated() const { return memory_.data != nullptr; }
  int64_t count(int64_t x) const { return first()[x + 1] - first()[x]; }
  const Window* at(int64_t x) const { return windows_of(first()[x]); }

 private:
  int64_t* first() const { return reinterpret_cast<int64_t*>(memory_.data); }
  Window* windows_of(int64_t i) const { return reinterpret_cast<Window*>(first() + size_ + 1) + i; }

  int64_t size_;
  Memory memory_;
};

// Whether vectors of `lanes` channels may be stored past the caches.
inline bool streams_pixels(const MaxUnpool& p, int64_t lanes, int64_t element) {
  constexpr int64_t kLine = 64;
  return lanes * element == SEGOPS_VECTOR_BYTES && p.output.channels % lanes == 0 &&
         p.output.stride_w * element % kLine == 0 && worth_streaming(p.output, p.warm, element, true);
}

// Channels as lanes.
template <class Element, class T, bool kSum, int kLanes>
Status gather_pixels(const MaxUnpool& p, const BadIndices& bad, const Parallel& parallel) {
  using Number = typename TapNumber<sizeof(T)>::type;
  const Planes& out = p.output;
  const int64_t rows = p.input.height, channels = out.channels, taps = p.vertical.kernel * p.horizontal.kernel;
  const Reaching in_rows(p.vertical, out.height, rows), in_columns(p.horizontal, out.width, p.input.width);
  if (!in_rows.allocated() || !in_columns.allocated()) return Status::out_of_memory;
  const int64_t bytes = out.batch * channels * out.height * out.width * int64_t{sizeof(Element)};
  const bool streaming = streams_pixels(p, kSum ? SEGOPS_VECTOR_BYTES / sizeof(Element) : kLanes, sizeof(Element));
  for_each_band(out, true, rows, bytes, parallel, [&](const Band& b) {
    for (int64_t y = b.begin; y < b.end; ++y) {
      const uint8_t* const row = row_of<const uint8_t>(p.indices, b, y);
      bool suspect = false;
      if (p.indices.stride_w == channels)
        suspect = any_beyond(row, p.input.width * channels, taps);
      else
        for (int64_t x = 0; x < p.input.width && !suspect; ++x)
          suspect = any_beyond(row + x * p.indices.stride_w, channels, taps);
      check_row(p, b, y, suspect, bad);
    }
    Giver<Element, uint8_t, Number> givers[256];
    const int64_t end = first_owned(p.vertical, b.end, rows, out.height);
    for (int64_t y = first_owned(p.vertical, b.begin, rows, out.height); y < end; ++y) {
      Element* pixel = row_of<Element>(out, b, y);
      for (int64_t x = 0; x < out.width; ++x, pixel += out.stride_w) {
        int64_t count = 0;
        for (int64_t i = 0; i < in_rows.count(y); ++i)
          for (int64_t j = 0; j < in_columns.count(x); ++j) {
            const Reaching::Window row = in_rows.at(y)[i], column = in_columns.at(x)[j];
            givers[count++] = {row_of<const Element>(p.input, b, row.window) + column.window * p.input.stride_w,
                               row_of<const uint8_t>(p.indices, b, row.window) + column.window * p.indices.stride_w,
                               static_cast<Number>(row.tap * p.horizontal.kernel + column.tap)};
          }
        with_count(count, [&](auto known) {
          constexpr int kCount = decltype(known)::kValue;
          for (int64_t i = 0; i < channels; i += kLanes) {
            const int64_t c = i < channels - kLanes ? i : channels - kLanes;
            put_gathered<kSum, kLanes, Element, T>(pixel + c, gather<kCount, T, kLanes, kSum>(givers, count, c), streaming);
          }
        });
      }
    }
  });
  return Status::ok;
}

// Rows of windows as lanes are read from them, with windows around them that point nowhere. There is room for those that
// reach a row of the output and one more.
template <class Element, class T>
class WindowRows {
 public:
  using Number = typename TapNumber<sizeof(T)>::type;
  static constexpr int kLanes = kNativeLanes<T>;

  // places: how many of a phase may be read.
  WindowRows(const MaxUnpool& p, int64_t places)
      : p_(p),
        slots_((p.vertical.kernel - 1) * p.vertical.dilation / p.vertical.stride + 2),
        before_(up((p.horizontal.kernel - 1) * p.horizontal.dilation / p.horizontal.stride)),
        extent_(before_ + up(places > p.input.width ? places : p.input.width) + kLanes) {}

  int64_t bytes() const { return slots_ * (row_bytes() + 64); }
  void start(char* scratch) const {
    for (int64_t slot = 0; slot < slots_; ++slot) held(scratch)[slot] = kUnfilled;
  }
  void forget(char* scratch) const {
    for (int64_t slot = 0; slot < slots_; ++slot)
      if (held(scratch)[slot] != kUnfilled) held(scratch)[slot] = kNone;
  }

  // What windows of a row give as their tap `tap`, were they one place for each.
  Giver<T, Number, Number> read(char* scratch, const Band& b, int64_t row, int64_t tap) const {
    hold(scratch, b, row);
    const T* const values = values_of(scratch, row);
    return {values + before_, reinterpret_cast<const Number*>(values + extent_) + before_, static_cast<Number>(tap)};
  }

  // Best called early: what is read just after it was written, by vectors across those written, has to wait.
  void hold(char* scratch, const Band& b, int64_t row) const {
    T* const values = values_of(scratch, row);
    Number* const indices = reinterpret_cast<Number*>(values + extent_);
    int64_t& held_row = held(scratch)[row % slots_];
    if (held_row == kUnfilled) {
      __builtin_memset(static_cast<void*>(values), 0, static_cast<size_t>(extent_) * sizeof(T));
      __builtin_memset(indices, 0xff, static_cast<size_t>(extent_) * sizeof(Number));
    }
    if (held_row != row) copy(b, row, values + before_, indices + before_);
    held_row = row;
  }

 private:
  static constexpr int64_t kNone = -1, kUnfilled = -2;
  static int64_t up(int64_t lanes) { return (lanes + kLanes - 1) / kLanes * kLanes; }
  int64_t row_bytes() const { return (extent_ * static_cast<int64_t>(sizeof(T) + sizeof(Number)) + 63) / 64 * 64; }
  int64_t* held(char* scratch) const { return reinterpret_cast<int64_t*>(scratch + slots_ * row_bytes()); }
  T* values_of(char* scratch, int64_t row) const { return reinterpret_cast<T*>(scratch + row % slots_ * row_bytes()); }

  void copy(const Band& b, int64_t row, T* values, Number* indices) const {
    const Element* const input = row_of<const Element>(p_.input, b, row);
    const uint8_t* const from = row_of<const uint8_t>(p_.indices, b, row);
    const int64_t windows = p_.input.width;
    int64_t x = 0;
    for (; x + kLanes <= windows; x += kLanes) copy<kLanes>(input + x, from + x, values + x, indices + x);
    for (; x < windows; ++x) copy<1>(input + x, from + x, values + x, indices + x);
  }
  template <int kCount>
  static SEGOPS_MEMBER void copy(const Element* input, const uint8_t* from, T* values, Number* indices) {
    *reinterpret_cast<Unaligned<T, kCount>*>(values) = load<kCount, T>(input);
    *reinterpret_cast<Unaligned<Number, kCount>*>(indices) = load_indices<Number, kCount>(from);
  }

  const MaxUnpool& p_;
  int64_t slots_, before_, extent_;
};

// A row of the output from the givers of its phases. Column x is at place (x + padding) / stride of phase
// (x + padding) % stride.
template <class Element, class T, bool kSum>
class PhaseRow {
 public:
  using Number = typename TapNumber<sizeof(T)>::type;
  using Givers = Giver<T, Number, Number>;
  static constexpr int kLanes = kNativeLanes<T>;

  explicit PhaseRow(const MaxUnpool& p)
      : axis_(p.horizontal), width_(p.output.width), streaming_(worth_streaming(p.output, p.warm, sizeof(Element), false)) {}

  int64_t places() const { return (width_ + axis_.padding) / axis_.stride + 1 + 2 * kLanes; }
  // givers: `count` of the one phase.
  void write_one(const Givers* givers, int64_t count, int64_t phase, Element* row) const {
    int64_t place = axis_.padding > phase ? (axis_.padding - phase + axis_.stride - 1) / axis_.stride : 0;
    int64_t x = place * axis_.stride + phase - axis_.padding;
    with_count(count, [&](auto known) {
      for (; x < width_; place += kLanes, x += kLanes * axis_.stride) {
        const auto result = gather<decltype(known)::kValue, T, kLanes, kSum>(givers, count, place);
        if (axis_.stride == 1 && x + kLanes <= width_) {
          put_gathered<kSum, kLanes, Element, T>(row + x, result, streaming_);
          continue;
        }
        Element elements[kLanes];
        put_gathered<kSum, kLanes, Element, T>(elements, result, false);
        for (int i = 0; i < kLanes && x + i * axis_.stride < width_; ++i) row[x + i * axis_.stride] = elements[i];
      }
    });
  }

  // Of stride 2: the phase of column 0 and the other one in turn.
  void write_two(const Givers* first, int64_t first_count, const Givers* second, int64_t second_count, Element* row) const {
    Vec<Number, kLanes> low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = static_cast<Number>(i / 2 + i % 2 * kLanes);
      high[i] = static_cast<Number>(kLanes / 2 + i / 2 + i % 2 * kLanes);
    }
    const int64_t place = axis_.padding / 2, odd = axis_.padding % 2;
    const auto write = [&](auto first_known, auto second_known) {
      for (int64_t x = 0; x < width_; x += 2 * kLanes) {
        const int64_t at = place + x / 2;
        const auto a = gather<decltype(first_known)::kValue, T, kLanes, kSum>(first, first_count, at);
        const auto b = gather<decltype(second_known)::kValue, T, kLanes, kSum>(second, second_count, at + odd);
        Element rest[2 * kLanes];
        const bool whole = x + 2 * kLanes <= width_;
        Element* const to = whole ? row + x : rest;
        put_gathered<kSum, kLanes, Element, T>(to, permute<T, kLanes>(a, b, low), whole && streaming_);
        put_gathered<kSum, kLanes, Element, T>(to + kLanes, permute<T, kLanes>(a, b, high), whole && streaming_);
        if (!whole) __builtin_memcpy(row + x, rest, static_cast<size_t>(width_ - x) * sizeof(Element));
      }
    };
    const auto are = [&](int64_t a, int64_t b) { return first_count == a && second_count == b; };
    if (are(1, 2)) return write(Fixed<1>{}, Fixed<2>{});
    if (are(2, 1)) return write(Fixed<2>{}, Fixed<1>{});
    if (are(2, 4)) return write(Fixed<2>{}, Fixed<4>{});
    if (are(4, 2)) return write(Fixed<4>{}, Fixed<2>{});
    write(Fixed<0>{}, Fixed<0>{});
  }

 private:
  WindowAxis axis_;
  int64_t width_;
  bool streaming_;
};

// Windows as lanes; not for windows of which every byte is a tap, where Number is a byte.
template <class Element, class T, bool kSum>
Status gather_rows(const MaxUnpool& p, const BadIndices& bad, const Parallel& parallel) {
  const Planes& out = p.output;
  const PhaseRow<Element, T, kSum> phase_row(p);
  const WindowRows<Element, T> window_rows(p, phase_row.places());
  const Reaching in_rows(p.vertical, out.height, p.input.height);
  const int64_t own = window_rows.bytes(), taps = p.vertical.kernel * p.horizontal.kernel, stride = p.horizontal.stride;
  const Memory scratch(parallel.workers * own, false);
  if (!scratch.data || !in_rows.allocated()) return Status::out_of_memory;
  for (int32_t worker = 0; worker < parallel.workers; ++worker) window_rows.start(scratch.data + worker * own);
  // Tap kx of window i is at place i + shifts[kx] of phase phases[kx].
  int64_t phases[256], shifts[256];
  for (int64_t kx = 0; kx < p.horizontal.kernel; ++kx) {
    phases[kx] = kx * p.horizontal.dilation % stride;
    shifts[kx] = kx * p.horizontal.dilation / stride;
  }
  const int64_t rows = p.input.height, bytes = out.batch * out.channels * out.height * out.width * int64_t{sizeof(Element)};
  for_each_band(out, false, rows, bytes, parallel, [&](const Band& b) {
    char* const mine = scratch.data + b.worker * own;
    window_rows.forget(mine);
    for (int64_t y = b.begin; y < b.end; ++y)
      check_row(p, b, y, any_beyond(row_of<const uint8_t>(p.indices, b, y), p.input.width, taps), bad);
    typename PhaseRow<Element, T, kSum>::Givers givers[2][256];
    const int64_t end = first_owned(p.vertical, b.end, rows, out.height);
    for (int64_t y = first_owned(p.vertical, b.begin, rows, out.height); y < end; ++y) {
      Element* const row = row_of<Element>(out, b, y);
      const auto list = [&](int64_t phase, auto& of_phase) {
        int64_t count = 0;
        for (int64_t i = 0; i < in_rows.count(y); ++i) {
          const Reaching::Window reaching = in_rows.at(y)[i];
          const auto row_giver = window_rows.read(mine, b, reaching.window, reaching.tap * p.horizontal.kernel);
          for (int64_t kx = p.horizontal.kernel - 1; kx >= 0; --kx) {
            if (phases[kx] != phase) continue;
            auto& giver = of_phase[count++] = row_giver;
            giver.values -= shifts[kx];
            giver.indices -= shifts[kx];
            giver.tap = static_cast<decltype(giver.tap)>(giver.tap + kx);
          }
        }
        return count;
      };
      if (y + 1 < end && in_rows.count(y + 1) > 0)
        window_rows.hold(mine, b, in_rows.at(y + 1)[in_rows.count(y + 1) - 1].window);
      if (stride == 2) {
        const int64_t phase = p.horizontal.padding % 2, first = list(phase, givers[0]), second = list(1 - phase, givers[1]);
        phase_row.write_two(givers[0], first, givers[1], second, row);
      } else {
        for (int64_t phase = 0; phase < stride; ++phase) phase_row.write_one(givers[0], list(phase, givers[0]), phase, row);
      }
    }
  });
  return Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
