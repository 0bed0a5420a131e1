// Kernels that read the taps of windows: max_pool2d, and the transpose of max_unpool2d. Compiled into every ISA namespace.
//
// Neighbouring windows of a dense row (neighbouring channels of a dense pixel) are lanes of a vector. So that a tap of
// neighbouring windows is a vector in memory, a row is split by the remainder of its columns by the stride. A visitor sees
// the taps of a vector of windows in row-major order.
#pragma once
#include "max_unpool_superseded.h"
#include "upsample_nearest_move.h"

namespace segops::SEGOPS_ISA {
namespace {

// Element as the vectors hold it, and which value takes the place of the maximum so far: a larger one, or NaN.
template <class Element>
struct Compared {
  using Memory = Element;
  static constexpr bool kFloat = Element(0.5) != Element(0);
  static Memory lowest() {
    if constexpr (kFloat)
      return -static_cast<Element>(__builtin_inf());
    else
      return Element(-1) > Element(0) ? Element(0) : static_cast<Element>(Element(1) << (8 * sizeof(Element) - 1));
  }
  template <int kLanes>
  static SEGOPS_MEMBER auto wins(Vec<Memory, kLanes> value, Vec<Memory, kLanes> most) {
    if constexpr (kFloat)
      return (value > most) | (value != value);
    else
      return value > most;
  }
};

// 16-bit floating point: sign and magnitude become an integer of the same order, in which both zeros are 0.
template <uint16_t kInfinity>
struct ComparedBits {
  using Memory = uint16_t;
  static Memory lowest() { return kInfinity | 0x8000u; }
  template <int kLanes>
  static SEGOPS_MEMBER auto wins(Vec<Memory, kLanes> value, Vec<Memory, kLanes> most) {
    using Key = Vec<int16_t, kLanes>;
    const Key value_magnitude = reinterpret_cast<Key>(value & uint16_t{0x7fff});
    const Key most_magnitude = reinterpret_cast<Key>(most & uint16_t{0x7fff});
    const Key value_sign = reinterpret_cast<Key>(value) >> 15, most_sign = reinterpret_cast<Key>(most) >> 15;
    const auto larger = (value_magnitude ^ value_sign) - value_sign > (most_magnitude ^ most_sign) - most_sign;
    constexpr int16_t kLimit = kInfinity;
    return (larger & (most_magnitude <= kLimit)) | (value_magnitude > kLimit);
  }
};
template <>
struct Compared<BFloat16> : ComparedBits<0x7f80> {};
template <>
struct Compared<Float16> : ComparedBits<0x7c00> {};

// An integer of an element's size, for lanes of tap numbers.
template <int kBytes>
struct TapNumber {
  using type = typename IntOfSize<kBytes>::type;
};
template <>
struct TapNumber<1> {
  using type = uint8_t;
};

// A number that the compiler is to know.
template <int kNumber>
struct Fixed {
  static constexpr int kValue = kNumber;
};
template <int kLanes>
using Lanes = Fixed<kLanes>;

template <class Number, int kLanes>
SEGOPS_INLINE Vec<Number, kLanes> load_indices(const uint8_t* p) {
  return load_bytes<kLanes, Number>(p);
}

// The maximum and where it is. first: the first tap inside the image, for windows whose every tap is the lowest value.
template <class Element, int kLanes>
struct PoolVisitor {
  static constexpr bool kIndices = true;
  using Memory = typename Compared<Element>::Memory;
  using Number = typename TapNumber<sizeof(Memory)>::type;
  Vec<Memory, kLanes> most;
  Vec<Number, kLanes> index;

  SEGOPS_MEMBER explicit PoolVisitor(Vec<Number, kLanes> first)
      : most(broadcast<kLanes, Memory>(Compared<Element>::lowest())), index(first) {}
  SEGOPS_MEMBER void tap(int64_t number, Vec<Memory, kLanes> value) {
    tap(broadcast<kLanes, Number>(static_cast<Number>(number)), value);
  }
  SEGOPS_MEMBER void tap(Vec<Number, kLanes> number, Vec<Memory, kLanes> value) {
    const auto wins = Compared<Element>::template wins<kLanes>(value, most);
    most = wins ? value : most;
    index = wins ? number : index;
  }
  SEGOPS_MEMBER Vec<Memory, kLanes> value() const { return most; }
  SEGOPS_MEMBER Vec<uint8_t, kLanes> number() const { return __builtin_convertvector(index, Vec<uint8_t, kLanes>); }
  SEGOPS_MEMBER void finish(Memory* output, uint8_t* indices) const {
    *reinterpret_cast<Unaligned<Memory, kLanes>*>(output) = value();
    *reinterpret_cast<Unaligned<uint8_t, kLanes>*>(indices) = number();
  }
};

// The tap that an index tells.
template <class U, int kLanes>
struct PickVisitor {
  static constexpr bool kIndices = false;
  using Number = typename TapNumber<sizeof(U)>::type;
  Vec<Number, kLanes> index;
  Vec<U, kLanes> picked{};

  SEGOPS_MEMBER explicit PickVisitor(Vec<Number, kLanes> indices) : index(indices) {}
  SEGOPS_MEMBER void tap(int64_t number, Vec<U, kLanes> value) {
    picked = index == broadcast<kLanes, Number>(static_cast<Number>(number)) ? value : picked;
  }
  SEGOPS_MEMBER Vec<U, kLanes> value() const { return picked; }
  SEGOPS_MEMBER void finish(U* output, uint8_t*) const { *reinterpret_cast<Unaligned<U, kLanes>*>(output) = picked; }
};

// Columns 0, 2, 4.. (odd: 1, 3, 5..) of two vectors.
template <class U, int kLanes>
SEGOPS_INLINE Vec<U, kLanes> every_other(Vec<U, kLanes> a, Vec<U, kLanes> b, int odd) {
  using Number = typename TapNumber<sizeof(U)>::type;
  Vec<Number, kLanes> lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<Number>(2 * i + odd);
  return permute<U, kLanes>(a, b, lanes);
}

// Rows of one image, split by phase: tap kx of window x is at row[offset(kx) + x], `fill` where it is outside. There is room
// for the rows of two rows of windows.
template <class U>
class SplitRows {
 public:
  static constexpr int64_t kPad = SEGOPS_VECTOR_BYTES / sizeof(U);

  SplitRows(const WindowAxis& vertical, const WindowAxis& horizontal, int64_t windows, int64_t width, U fill)
      : axis_(horizontal),
        width_(width),
        fill_(fill),
        slots_((vertical.kernel - 1) * vertical.dilation + 1 + vertical.stride),
        extent_((windows + (horizontal.kernel - 1) * horizontal.dilation / horizontal.stride + 2 * kPad) / kPad * kPad),
        places_(horizontal.stride * static_cast<int64_t>(sizeof(Places)), false) {
    for (int64_t phase = 0; phase < axis_.stride && places_.data; ++phase) {
      const int64_t last = place_of(width_ + axis_.padding - phase);
      places()[phase] = Places{place_of(axis_.padding - phase), last < extent_ ? last : extent_};
    }
  }
  bool allocated() const { return places_.data != nullptr; }

  int64_t bytes() const {
    const int64_t all =
        slots_ * axis_.stride * extent_ * static_cast<int64_t>(sizeof(U)) + slots_ * int64_t{sizeof(int64_t)};
    return (all + 63) / 64 * 64;
  }
  int64_t offset(int64_t kx) const {
    return kx * axis_.dilation % axis_.stride * extent_ + kx * axis_.dilation / axis_.stride;
  }
  // What is outside is the same in all rows: a slot is filled once.
  void start(char* scratch) const {
    for (int64_t slot = 0; slot < slots_; ++slot) held(scratch)[slot] = kUnfilled;
  }
  void forget(char* scratch) const {
    for (int64_t slot = 0; slot < slots_; ++slot)
      if (held(scratch)[slot] != kUnfilled) held(scratch)[slot] = kNone;
  }

  // Row y.
  const U* split(char* scratch, const U* row, int64_t y) const {
    const int64_t slot = y % slots_;
    U* const to = reinterpret_cast<U*>(scratch) + slot * axis_.stride * extent_;
    const int64_t before = held(scratch)[slot];
    if (before == y) return to;
    held(scratch)[slot] = y;
    for (int64_t phase = 0; phase < axis_.stride; ++phase) {
      if (before == kUnfilled) fill_outside(phase, to + phase * extent_);
      if (axis_.stride != 2) split_one(row, phase, to + phase * extent_);
    }
    if (axis_.stride == 2) split_in_two(row, to);
    return to;
  }

 private:
  static constexpr int64_t kNone = -1, kUnfilled = -2;

  // The places q of a phase whose columns q * stride + phase - padding are inside.
  struct Places {
    int64_t begin, end;
  };
  Places* places() const { return reinterpret_cast<Places*>(places_.data); }
  int64_t place_of(int64_t columns) const { return columns > 0 ? (columns + axis_.stride - 1) / axis_.stride : 0; }

  int64_t* held(char* scratch) const {
    return reinterpret_cast<int64_t*>(scratch + slots_ * axis_.stride * extent_ * static_cast<int64_t>(sizeof(U)));
  }

  void fill_outside(int64_t phase, U* to) const {
    const Places inside = places()[phase];
    for (int64_t q = 0; q < inside.begin && q < extent_; ++q) to[q] = fill_;
    for (int64_t q = inside.end; q < extent_; ++q) to[q] = fill_;
  }

  void split_one(const U* row, int64_t phase, U* to) const {
    const int64_t first = places()[phase].begin, last = places()[phase].end;
    if (first >= last) return;
    const int64_t shift = phase - axis_.padding;
    if (axis_.stride == 1) {
      __builtin_memcpy(to + first, row + first + shift, static_cast<size_t>(last - first) * sizeof(U));
      return;
    }
    for (int64_t q = first; q < last; ++q) to[q] = row[q * axis_.stride + shift];
  }

  void split_in_two(const U* row, U* even) const {
    constexpr int kLanes = kPad, kAhead = 4096;
    U* const odd = even + extent_;
    const Places first = places()[0], second = places()[1];
    const int64_t begin = first.begin > second.begin ? first.begin : second.begin;
    const int64_t end = first.end < second.end ? first.end : second.end;
    const auto column = [&](int64_t q) { return row + (2 * q - axis_.padding); };
    for (int64_t q = first.begin; q < begin && q < first.end; ++q) even[q] = *column(q);
    for (int64_t q = second.begin; q < begin && q < second.end; ++q) odd[q] = column(q)[1];
    for (int64_t at = begin; at < end && end - begin >= kLanes; at += kLanes) {
      const int64_t q = at < end - kLanes ? at : end - kLanes;
      const Vec<U, kLanes> a = *reinterpret_cast<const Unaligned<U, kLanes>*>(column(q));
      const Vec<U, kLanes> b = *reinterpret_cast<const Unaligned<U, kLanes>*>(column(q) + kLanes);
      __builtin_prefetch(reinterpret_cast<const char*>(column(q)) + kAhead);
      __builtin_prefetch(reinterpret_cast<const char*>(column(q)) + kAhead + 64);
      *reinterpret_cast<Unaligned<U, kLanes>*>(even + q) = every_other<U, kLanes>(a, b, 0);
      *reinterpret_cast<Unaligned<U, kLanes>*>(odd + q) = every_other<U, kLanes>(a, b, 1);
    }
    const int64_t rest = end - begin >= kLanes ? end : begin;
    for (int64_t q = rest; q < first.end; ++q) even[q] = *column(q);
    for (int64_t q = rest; q < second.end; ++q) odd[q] = column(q)[1];
  }

  WindowAxis axis_;
  int64_t width_;
  U fill_;
  int64_t slots_, extent_;
  Memory places_;
};

// The taps of a vector of windows that are inside: that of row ky and column kx is at rows[ky] + offsets[kx] + at. kSide: if
// not 0, the windows are of kSide x kSide and all of them is inside, so that the compiler knows the taps.
template <int kSide, class U, int kLanes, class Visitor>
SEGOPS_INLINE void visit_taps(Visitor& visitor, const U* const* rows, const int64_t* offsets, int64_t at, Taps vertical,
                              Taps horizontal, int64_t width) {
  const auto tap = [&](int64_t ky, int64_t kx, int64_t number) {
    visitor.tap(number, *reinterpret_cast<const Unaligned<U, kLanes>*>(rows[ky] + offsets[kx] + at));
  };
  if constexpr (kSide != 0) {
#pragma GCC unroll 8
    for (int ky = 0; ky < kSide; ++ky)
#pragma GCC unroll 8
      for (int kx = 0; kx < kSide; ++kx) tap(ky, kx, ky * kSide + kx);
  } else {
    for (int64_t ky = vertical.begin; ky < vertical.end; ++ky)
      for (int64_t kx = horizontal.begin; kx < horizontal.end; ++kx) tap(ky, kx, ky * width + kx);
  }
}

// Visits the windows of dense rows. image, windows: read and written; numbers(band, y, x): what visitors start with.
template <template <class, int> class Visitor, class Element, class U, class Start>
Status visit_rows(const ConstPlanes& image, const Planes& windows, const PlanesOf<uint8_t>& indices,
                  const WindowAxis& vertical, const WindowAxis& horizontal, U fill, const Parallel& parallel,
                  const Start& start) {
  constexpr int kNative = kNativeLanes<U>;
  using Own = Visitor<Element, kNative>;
  const SplitRows<U> rows(vertical, horizontal, windows.width, image.width, fill);
  const int64_t own = rows.bytes() + (vertical.kernel + horizontal.kernel) * 8;
  const Memory scratch(parallel.workers * own, false);
  if (!scratch.data || !rows.allocated()) return Status::out_of_memory;
  for (int32_t worker = 0; worker < parallel.workers; ++worker) rows.start(scratch.data + worker * own);
  const int64_t bytes = image.batch * image.channels * image.height * image.width * static_cast<int64_t>(sizeof(U));
  for_each_band(windows, false, windows.height, bytes, parallel, [&](const Band& b) {
    char* const mine = scratch.data + b.worker * own;
    const U* const plane = row_of<const U>(image, b, 0);
    rows.forget(mine);
    const U** const taps = reinterpret_cast<const U**>(mine + rows.bytes());
    int64_t* const offsets = reinterpret_cast<int64_t*>(taps + vertical.kernel);
    for (int64_t kx = 0; kx < horizontal.kernel; ++kx) offsets[kx] = rows.offset(kx);
    for (int64_t y = b.begin; y < b.end; ++y) {
      U* const to = row_of<U>(windows, b, y);
      uint8_t* const to_indices = indices.data ? row_of<uint8_t>(indices, b, y) : nullptr;
      const Taps inside = taps_inside(vertical, y, image.height);
      const auto begin = [&](int64_t x) { return start(b, inside.begin, y, x, windows.width - x); };
      const auto split = [&](int64_t windows_row, int64_t ky) {
        const int64_t row = tap_position(vertical, windows_row, ky);
        return rows.split(mine, plane + row * image.stride_h, row);
      };
      for (int64_t ky = inside.begin; ky < inside.end; ++ky) taps[ky] = split(y, ky);
      // A row ahead: what is read just after it was written, by vectors across those written, has to wait.
      const Taps next = y + 1 < b.end ? taps_inside(vertical, y + 1, image.height) : Taps{0, 0};
      for (int64_t ky = next.begin; ky < next.end; ++ky) split(y + 1, ky);
      const Taps columns{0, horizontal.kernel};
      const auto visit = [&](auto side) {
        for (int64_t x = 0; x < windows.width; x += kNative) {
          Own visitor(begin(x));
          visit_taps<decltype(side)::kValue, U, kNative>(visitor, taps, offsets, x, inside, columns, horizontal.kernel);
          if (x + kNative <= windows.width) {
            visitor.finish(to + x, to_indices + x);
            continue;
          }
          U values[kNative];
          uint8_t numbers[kNative];
          visitor.finish(values, numbers);
          const size_t rest = static_cast<size_t>(windows.width - x);
          __builtin_memcpy(to + x, values, rest * sizeof(U));
          if (to_indices) __builtin_memcpy(to_indices + x, numbers, rest);
        }
      };
      if (horizontal.kernel == 3 && inside.end - inside.begin == 3 && vertical.kernel == 3)
        visit(Fixed<3>{});
      else
        visit(Fixed<0>{});
    }
  });
  return Status::ok;
}

// Visits the windows of dense pixels, kLanes channels (there are as many) at a time.
template <template <class, int> class Visitor, class Element, class U, int kLanes, class Start>
void visit_pixels(const ConstPlanes& image, const Planes& windows, const PlanesOf<uint8_t>& indices,
                  const WindowAxis& vertical, const WindowAxis& horizontal, const Parallel& parallel, const Start& start) {
  const int64_t bytes = image.batch * image.channels * image.height * image.width * static_cast<int64_t>(sizeof(U));
  const int64_t reach = (horizontal.kernel - 1) * horizontal.dilation;
  const bool three = vertical.kernel == 3 && horizontal.kernel == 3;
  for_each_band(windows, true, windows.height, bytes, parallel, [&](const Band& b) {
    const U* taps[256];
    int64_t offsets[256];
    for (int64_t kx = 0; kx < horizontal.kernel; ++kx) offsets[kx] = kx * horizontal.dilation * image.stride_w;
    for (int64_t y = b.begin; y < b.end; ++y) {
      const Taps rows = taps_inside(vertical, y, image.height);
      for (int64_t ky = rows.begin; ky < rows.end; ++ky) taps[ky] = row_of<const U>(image, b, tap_position(vertical, y, ky));
      for (int64_t x = 0; x < windows.width; ++x) {
        const int64_t column = tap_position(horizontal, x, 0);
        const bool whole = column >= 0 && column + reach < image.width;
        const Taps columns = whole ? Taps{0, horizontal.kernel} : taps_inside(horizontal, x, image.width);
        U* const to = row_of<U>(windows, b, y) + x * windows.stride_w;
        uint8_t* const to_indices = indices.data ? row_of<uint8_t>(indices, b, y) + x * indices.stride_w : nullptr;
        const auto visit = [&](auto side) {
          for (int64_t i = 0; i < windows.channels; i += kLanes) {
            const int64_t c = i < windows.channels - kLanes ? i : windows.channels - kLanes;
            Visitor<Element, kLanes> visitor(start(b, rows.begin * horizontal.kernel + columns.begin, y, x, c));
            visit_taps<decltype(side)::kValue, U, kLanes>(visitor, taps, offsets, column * image.stride_w + c, rows, columns,
                                                          horizontal.kernel);
            visitor.finish(to + c, to_indices + c);
          }
        };
        if (three && whole && rows.end - rows.begin == 3)
          visit(Fixed<3>{});
        else
          visit(Fixed<0>{});
      }
    }
  });
}

template <class Element>
Status pool_image(const MaxPool& p, const Parallel& parallel) {
  using U = typename Compared<Element>::Memory;
  using Number = typename TapNumber<sizeof(U)>::type;
  constexpr int kNative = kNativeLanes<U>, kLeast = 16 / sizeof(U);
  const bool dense = p.input.stride_w == 1 && p.output.stride_w == 1 && p.indices.stride_w == 1;
  if (dense && may_split(p.vertical, p.horizontal)) {
    // The first column tap inside the image, for every window.
    const Memory firsts(p.output.width + SEGOPS_VECTOR_BYTES);
    if (!firsts.data) return Status::out_of_memory;
    uint8_t* const first = reinterpret_cast<uint8_t*>(firsts.data);
    for (int64_t x = 0; x < p.output.width; ++x)
      first[x] = static_cast<uint8_t>(taps_inside(p.horizontal, x, p.input.width).begin);
    return visit_rows<PoolVisitor, Element, U>(
        p.input, p.output, p.indices, p.vertical, p.horizontal, Compared<Element>::lowest(), parallel,
        [&](const Band&, int64_t row, int64_t, int64_t x, int64_t) {
          return load_indices<Number, kNative>(first + x) + static_cast<Number>(row * p.horizontal.kernel);
        });
  }
  const auto pixels = [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::kValue;
    visit_pixels<PoolVisitor, Element, U, kLanes>(p.input, p.output, p.indices, p.vertical, p.horizontal, parallel,
                                                  [](const Band&, int64_t first, int64_t, int64_t, int64_t) {
                                                    return broadcast<kLanes, Number>(static_cast<Number>(first));
                                                  });
    return Status::ok;
  };
  const bool last = both_channels_last(p.input, p.output) && p.indices.stride_c == 1;
  if (last && p.output.channels >= kNative) return pixels(Lanes<kNative>{});
  if (last && p.output.channels >= kLeast) return pixels(Lanes<kLeast>{});
  pool_singly<Element>(p, parallel);
  return Status::ok;
}

// Whether no two windows share an element.
inline bool apart(const WindowAxis& axis) { return (axis.kernel - 1) * axis.dilation < axis.stride; }

template <class U>
Status pick_image(const MaxUnpoolBackward& p, const Parallel& parallel) {
  using Number = typename TapNumber<sizeof(U)>::type;
  constexpr int kNative = kNativeLanes<U>, kLeast = 16 / sizeof(U);
  const bool alone = p.accumulate || (apart(p.vertical) && apart(p.horizontal));
  if (!alone && p.vertical.kernel * p.horizontal.kernel <= kNowhere && may_split(p.vertical, p.horizontal)) {
    const ConstPlanes& o = p.grad_output;
    const int64_t n = o.batch, c = o.channels, h = p.grad_input.height, w = p.grad_input.width;
    const Memory memory(n * c * h * w, false);
    if (!memory.data) return Status::out_of_memory;
    const bool together = both_channels_last(o, p.grad_input) && p.indices.stride_c == 1;
    uint8_t* const data = reinterpret_cast<uint8_t*>(memory.data);
    const PlanesOf<uint8_t> standing = together ? PlanesOf<uint8_t>{data, n, c, h, w, c * h * w, 1, w * c, c}
                                                : PlanesOf<uint8_t>{data, n, c, h, w, c * h * w, h * w, w, 1};
    const Status status = copy_standing(p, standing, together, parallel);
    if (status != Status::ok) return status;
    MaxUnpoolBackward alike = p;
    alike.indices = {data, n, c, h, w, standing.stride_n, standing.stride_c, standing.stride_h, standing.stride_w};
    alike.accumulate = true;
    return pick_image<U>(alike, parallel);
  }
  const bool dense = p.grad_output.stride_w == 1 && p.grad_input.stride_w == 1 && p.indices.stride_w == 1;
  if (alone && dense && may_split(p.vertical, p.horizontal))
    return visit_rows<PickVisitor, U, U>(p.grad_output, p.grad_input, PlanesOf<uint8_t>{}, p.vertical, p.horizontal, U{},
                                         parallel, [&](const Band& b, int64_t, int64_t y, int64_t x, int64_t left) {
                                           const uint8_t* const from = row_of<const uint8_t>(p.indices, b, y) + x;
                                           if (left >= kNative) return load_indices<Number, kNative>(from);
                                           uint8_t rest[kNative] = {};
                                           __builtin_memcpy(rest, from, static_cast<size_t>(left));
                                           return load_indices<Number, kNative>(rest);
                                         });
  const auto pixels = [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::kValue;
    visit_pixels<PickVisitor, U, U, kLanes>(
        p.grad_output, p.grad_input, PlanesOf<uint8_t>{}, p.vertical, p.horizontal, parallel,
        [&](const Band& b, int64_t, int64_t y, int64_t x, int64_t c) {
          return load_indices<Number, kLanes>(row_of<const uint8_t>(p.indices, b, y) + x * p.indices.stride_w + c);
        });
    return Status::ok;
  };
  const bool last = alone && both_channels_last(p.grad_output, p.grad_input) && p.indices.stride_c == 1;
  if (last && p.grad_input.channels >= kNative) return pixels(Lanes<kNative>{});
  if (last && p.grad_input.channels >= kLeast) return pixels(Lanes<kLeast>{});
  pick_singly<U>(p, parallel);
  return Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
