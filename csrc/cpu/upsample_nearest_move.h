// Images of which each element is one of another image, or zero. Compiled into every ISA namespace.
//
// A row is made of vectors, each a permutation of one or two vectors of the source row: that serves doubling, any other
// scale, and zeros between. Pixels that fill a vector (channels last) are copied one by one instead.
#pragma once
#include "segops/planes.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {

// Lanes of a and, behind them, of b.
template <class T, int kLanes, class Index>
SEGOPS_INLINE Vec<T, kLanes> permute(Vec<T, kLanes> a, Vec<T, kLanes> b, Index index) {
#if __has_builtin(__builtin_shuffle)
  return __builtin_shuffle(a, b, index);
#else
  Vec<T, kLanes> result;
  for (int i = 0; i < kLanes; ++i) {
    const auto at = index[i] & (2 * kLanes - 1);
    result[i] = at < kLanes ? a[at] : b[at - kLanes];
  }
  return result;
#endif
}

template <class T, int kLanes, class Index>
SEGOPS_INLINE Vec<T, kLanes> permute(Vec<T, kLanes> a, Index index) {
#if __has_builtin(__builtin_shuffle)
  return __builtin_shuffle(a, index);
#else
  return permute<T, kLanes>(a, a, index);
#endif
}

// Where a row vector of `lanes` elements begins: the last one ends where the row ends.
SEGOPS_INLINE int64_t vector_begin(int64_t vector, int64_t lanes, int64_t extent) {
  const int64_t at = vector * lanes;
  return at < extent - lanes ? at : extent - lanes;
}

namespace {

struct Move {
  ConstPlanes input;
  Planes output;
  const int32_t *rows, *columns;  // the source of each output row and column, or -1: zeros
  bool warm;                      // whether the output's memory has been touched before
};

constexpr int64_t kItemBytes = 128 << 10;  // of the larger image, moved or summed by one item

template <class U, int kLanes>
SEGOPS_INLINE void put(U* p, Vec<U, kLanes> v, bool streaming) {
  if (streaming) {
    constexpr int kFloats = kLanes * static_cast<int>(sizeof(U)) / 4;
    store_streaming<kFloats, float, float>(reinterpret_cast<float*>(p), reinterpret_cast<Vec<float, kFloats>>(v));
  } else {
    *reinterpret_cast<Unaligned<U, kLanes>*>(p) = v;
  }
}

// The permutations that make a row of `out` elements from one of `in` elements.
template <class U>
class RowMap {
 public:
  enum Kind { kOne, kOneOrZero, kTwo, kSingly };  // how many source vectors a vector is made of

  // channels: of dense pixels that the row is made of, 1 if it is of elements.
  RowMap(const Move& m, int64_t channels)
      : columns_(m.columns),
        channels_(channels),
        in_(m.input.width * channels),
        out_(m.output.width * channels),
        memory_(out_ * static_cast<int64_t>(sizeof(U) + sizeof(int32_t)) + 2 * SEGOPS_VECTOR_BYTES) {
    if (!memory_.data) return;
    index_ = reinterpret_cast<U*>(memory_.data);
    for (lanes_ = kNativeLanes<U>; lanes_ * sizeof(U) >= 16; lanes_ /= 2)
      if (lanes_ <= in_ && lanes_ <= out_ && tabulate()) return;
    kind_ = kSingly;
  }

  bool valid() const { return memory_.data != nullptr; }
  // Whether vectors begin at multiples of their size in an aligned row.
  bool is_whole() const { return kind_ != kSingly && out_ % lanes_ == 0; }

  void clear(U* out, bool streaming) const {
    constexpr int kLeast = 16 / sizeof(U);
    if (!streaming) {
      __builtin_memset(out, 0, static_cast<size_t>(out_) * sizeof(U));
      return;
    }
    for (int64_t i = 0; i < out_; i += kLeast) put<U, kLeast>(out + i, Vec<U, kLeast>{}, true);
  }

  // `rows` equal rows, `stride` apart.
  void make(const U* in, U* out, int64_t stride, int64_t rows, bool streaming) const {
    constexpr int kNative = kNativeLanes<U>, kLeast = 16 / sizeof(U);
    if (kind_ == kSingly) return make_singly(in, out, stride, rows);
    if (lanes_ == kNative) return make<kNative>(in, out, stride, rows, streaming);
    if constexpr (kNative / 2 > kLeast)
      if (lanes_ == kNative / 2) return make<kNative / 2>(in, out, stride, rows, streaming);
    make<kLeast>(in, out, stride, rows, streaming);
  }

 private:
  int64_t source(int64_t i) const {
    const int64_t column = columns_[i / channels_];
    return column < 0 ? -1 : column * channels_ + i % channels_;
  }

  int64_t vectors() const { return (out_ + lanes_ - 1) / lanes_; }

  // Whether vectors of `lanes_` can be made; then kind, bases and indices are set.
  bool tabulate() {
    bases_ = reinterpret_cast<int32_t*>(index_ + vectors() * lanes_);
    bool zeros = false;
    int64_t widest = 0;
    for (int64_t v = 0; v < vectors(); ++v) {
      const int64_t begin = vector_begin(v, lanes_, out_);
      int64_t least = in_, most = 0;
      for (int64_t i = begin; i < begin + lanes_; ++i) {
        const int64_t from = source(i);
        zeros |= from < 0;
        if (from >= 0 && from < least) least = from;
        if (from > most) most = from;
      }
      if (least > most) least = most;
      bases_[v] = static_cast<int32_t>(least);
      if (most - least + 1 > widest) widest = most - least + 1;
    }
    kind_ = zeros ? kOneOrZero : kOne;
    if (widest > lanes_) {
      if (zeros || widest > 2 * lanes_ || 2 * lanes_ > in_) return false;
      kind_ = kTwo;
    }
    const int64_t window = kind_ == kTwo ? 2 * lanes_ : lanes_;
    for (int64_t v = 0; v < vectors(); ++v) {
      if (bases_[v] > in_ - window) bases_[v] = static_cast<int32_t>(in_ - window);
      const int64_t begin = vector_begin(v, lanes_, out_);
      for (int64_t i = 0; i < lanes_; ++i) {
        const int64_t from = source(begin + i);
        index_[v * lanes_ + i] = static_cast<U>(from < 0 ? lanes_ : from - bases_[v]);
      }
    }
    return true;
  }

  template <int kLanes>
  void make(const U* in, U* out, int64_t stride, int64_t rows, bool streaming) const {
    switch (kind_) {
      case kOne: return make<kLanes, kOne>(in, out, stride, rows, streaming);
      case kTwo: return make<kLanes, kTwo>(in, out, stride, rows, streaming);
      default: return make<kLanes, kOneOrZero>(in, out, stride, rows, streaming);
    }
  }

  template <int kLanes, Kind kKind>
  void make(const U* in, U* out, int64_t stride, int64_t rows, bool streaming) const {
    using V = Vec<U, kLanes>;
    const int64_t count = vectors();
    for (int64_t v = 0; v < count; ++v) {
      const U* const from = in + bases_[v];
      const V index = load<kLanes, U>(index_ + v * kLanes), low = load<kLanes, U>(from);
      V made;
      if constexpr (kKind == kOne)
        made = permute<U, kLanes>(low, index);
      else if constexpr (kKind == kTwo)
        made = permute<U, kLanes>(low, load<kLanes, U>(from + kLanes), index);
      else
        made = permute<U, kLanes>(low, V{}, index);
      U* to = out + vector_begin(v, kLanes, out_);
      for (int64_t r = 0; r < rows; ++r, to += stride) put<U, kLanes>(to, made, streaming);
    }
  }

  void make_singly(const U* in, U* out, int64_t stride, int64_t rows) const {
    for (int64_t x = 0; x * channels_ < out_; ++x)
      for (int64_t c = 0; c < channels_; ++c)
        out[x * channels_ + c] = columns_[x] < 0 ? U(0) : in[columns_[x] * channels_ + c];
    for (int64_t r = 1; r < rows; ++r) __builtin_memcpy(out + r * stride, out, static_cast<size_t>(out_) * sizeof(U));
  }

  const int32_t* columns_;
  int64_t channels_, in_, out_;
  Memory memory_;
  U* index_ = nullptr;
  int32_t* bases_ = nullptr;
  Kind kind_ = kSingly;
  int64_t lanes_ = 0;
};

// `count` elements from `from`, or zeros if there are none.
template <class U, int kLanes>
SEGOPS_INLINE void copy_pixel(const U* from, U* to, int64_t count, bool streaming) {
  using V = Vec<U, kLanes>;
  for (int64_t c = 0; c < count; c += kLanes) {
    const int64_t at = c < count - kLanes ? c : count - kLanes;
    put<U, kLanes>(to + at, from ? load<kLanes, U>(from + at) : V{}, streaming);
  }
}

template <class U>
SEGOPS_INLINE void copy_pixel(const U* from, U* to, int64_t count, bool streaming) {
  constexpr int kLeast = 16 / sizeof(U);
  if (count >= kNativeLanes<U>) return copy_pixel<U, kNativeLanes<U>>(from, to, count, streaming);
  if (count >= kLeast) return copy_pixel<U, kLeast>(from, to, count, false);
  for (int64_t c = 0; c < count; ++c) to[c] = from ? from[c] : U(0);
}

// Calls row(source, first output row, how many) for all rows with one source, or none, in every plane (in every image, if
// rows are of pixels).
template <class U, class Row>
void for_each_row(const Move& m, bool of_pixels, const Parallel& parallel, const Row& row) {
  const int64_t planes = of_pixels ? 1 : m.output.channels, height = m.output.height;
  const int64_t rows = m.output.batch * planes * height;
  const int64_t row_bytes = m.output.width * (of_pixels ? m.output.channels : 1) * static_cast<int64_t>(sizeof(U));
  const int64_t rows_per_item = row_bytes < kItemBytes ? kItemBytes / row_bytes : 1;
  for_each_item(parallel, (rows + rows_per_item - 1) / rows_per_item, false, [&](int64_t item, int32_t) {
    const int64_t begin = item * rows_per_item, end = begin + rows_per_item < rows ? begin + rows_per_item : rows;
    for (int64_t i = begin; i < end;) {
      const int64_t n = i / height / planes, c = i / height % planes, first = i % height;
      const int64_t last = first + end - i < height ? first + end - i : height;
      const U* const from = static_cast<const U*>(m.input.data) + n * m.input.stride_n + c * m.input.stride_c;
      U* const to = static_cast<U*>(m.output.data) + n * m.output.stride_n + c * m.output.stride_c;
      for (int64_t y = first, next; y < last; y = next) {
        for (next = y + 1; next < last && m.rows[next] == m.rows[y]; ++next);
        row(m.rows[y] < 0 ? nullptr : from + m.rows[y] * m.input.stride_h, to + y * m.output.stride_h, next - y);
      }
      i += last - first;
    }
    streaming_done();
  });
}

// Whether what a kernel touches is far larger than a last-level cache: of less, some is still there when it is read next.
inline bool exceeds_caches(int64_t bytes) { return bytes >= 64 << 20; }

// Whether rows begin at cache lines.
template <class P>
bool begins_lines(const P& o, int64_t element, bool of_pixels) {
  constexpr int64_t kLine = 64;
  const auto whole = [&](int64_t extent, int64_t stride) { return extent <= 1 || stride * element % kLine == 0; };
  return reinterpret_cast<uintptr_t>(o.data) % kLine == 0 && whole(o.batch, o.stride_n) && whole(o.height, o.stride_h) &&
         (of_pixels || whole(o.channels, o.stride_c));
}

// Whether to store a warm output past the caches.
inline bool worth_streaming(const Planes& o, bool warm, int64_t element, bool of_pixels) {
  return warm && exceeds_caches(o.batch * o.channels * o.height * o.width * element) && begins_lines(o, element, of_pixels);
}

template <class U>
Status move_rows(const Move& m, bool of_pixels, const Parallel& parallel) {
  const RowMap<U> map(m, of_pixels ? m.output.channels : 1);
  if (!map.valid()) return Status::out_of_memory;
  const bool streaming = map.is_whole() && worth_streaming(m.output, m.warm, sizeof(U), of_pixels);
  const int64_t stride = m.output.stride_h;
  for_each_row<U>(m, of_pixels, parallel, [&](const U* from, U* to, int64_t rows) {
    // Several rows at once are several streams: more of them than a processor combines would cost more than the work.
    constexpr int64_t kStreams = 4;
    if (!from)
      for (int64_t r = 0; r < rows; ++r) map.clear(to + r * stride, streaming);
    else
      for (int64_t r = 0; r < rows; r += kStreams)
        map.make(from, to + r * stride, stride, rows - r < kStreams ? rows - r : kStreams, streaming);
  });
  return Status::ok;
}

template <class U>
void move_pixels(const Move& m, const Parallel& parallel) {
  const Planes& o = m.output;
  const bool streaming = worth_streaming(o, m.warm, sizeof(U), true) &&
                         o.stride_w * static_cast<int64_t>(sizeof(U)) % 64 == 0 &&
                         o.channels * static_cast<int64_t>(sizeof(U)) % 64 == 0;
  for_each_row<U>(m, true, parallel, [&](const U* from, U* to, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r, to += o.stride_h)
      for (int64_t x = 0; x < o.width; ++x) {
        const int32_t column = m.columns[x];
        const U* const pixel = from && column >= 0 ? from + column * m.input.stride_w : nullptr;
        copy_pixel(pixel, to + x * o.stride_w, o.channels, streaming);
      }
  });
}

// Layouts that differ.
template <class U>
void move_singly(const Move& m, const Parallel& parallel) {
  for_each_row<U>(m, false, parallel, [&](const U* from, U* to, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r, to += m.output.stride_h)
      for (int64_t x = 0; x < m.output.width; ++x)
        to[x * m.output.stride_w] = from && m.columns[x] >= 0 ? from[m.columns[x] * m.input.stride_w] : U(0);
  });
}

template <class U>
Status move_image(const Move& m, const Parallel& parallel) {
  const ConstPlanes& in = m.input;
  const Planes& out = m.output;
  if (in.stride_w == 1 && out.stride_w == 1) return move_rows<U>(m, false, parallel);
  if (in.stride_c != 1 || out.stride_c != 1) return move_singly<U>(m, parallel), Status::ok;
  const bool dense = in.stride_w == in.channels && out.stride_w == out.channels && out.width * out.channels < INT32_MAX &&
                     in.width * in.channels < INT32_MAX;
  if (dense && out.channels < kNativeLanes<U>) return move_rows<U>(m, true, parallel);
  return move_pixels<U>(m, parallel), Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
