// Images of which each element is the sum of a rectangle of another image: the gradient of nearest upsampling. Compiled into
// every ISA namespace.
//
// Every sum runs over its rectangle in row-major order. Neighbouring sums are lanes of a vector: the k-th addend of each is
// a permutation of a window of two vectors of the fine row.
#pragma once
#include "upsample_nearest_move.h"

namespace segops::SEGOPS_ISA {
namespace {

struct Sum {
  ConstPlanes fine;
  Planes coarse;
  const int32_t *rows, *columns;  // the first fine row (column) of each coarse one, and of one more
};

// How a row of sums is made of fine rows.
template <class T, class In>
class RowSums {
 public:
  using Bits = BitsOf<T>;

  // channels: of dense pixels that the row is made of, 1 if it is of elements.
  RowSums(const Sum& s, int64_t channels)
      : columns_(s.columns),
        channels_(channels),
        fine_(s.fine.width * channels),
        coarse_(s.coarse.width * channels),
        // At least kLeastLanes / 4 sums to a window of 2 vectors.
        memory_(vectors(coarse_, kLeastLanes / 4) *
                    static_cast<int64_t>(sizeof(Entry) + 2 * kNativeLanes<T> * sizeof(Bits)) +
                SEGOPS_VECTOR_BYTES) {
    if (!memory_.data) return;
    for (lanes_ = kNativeLanes<T>; lanes_ >= kLeastLanes; lanes_ /= 2)
      for (sums_ = lanes_; sums_ >= kLeastLanes / 4 && sums_ >= 1; sums_ /= 2)
        if (2 * lanes_ <= fine_ && sums_ <= coarse_ && tabulate()) return;
    lanes_ = 0;
  }

  bool valid() const { return memory_.data != nullptr; }

  // Of the scratch that `make` needs.
  int64_t scratch() const { return lanes_ == 0 ? 0 : vectors(coarse_, sums_) * lanes_; }

  // fine: the first of `rows` fine rows, `stride` apart.
  void make(const In* fine, int64_t stride, int64_t rows, In* coarse, T* sums) const {
    constexpr int kNative = kNativeLanes<T>;
    if (lanes_ == 0) return make_singly(fine, stride, rows, coarse);
    if (lanes_ == kNative) return make<kNative>(fine, stride, rows, coarse, sums);
    if constexpr (kNative / 2 > kLeastLanes)
      if (lanes_ == kNative / 2) return make<kNative / 2>(fine, stride, rows, coarse, sums);
    make<kLeastLanes>(fine, stride, rows, coarse, sums);
  }

 private:
  static constexpr int kLeastLanes = 16 / static_cast<int>(sizeof(T));
  struct Entry {
    int32_t base, least, most;  // where the window begins, and the numbers of addends
  };

  static int64_t vectors(int64_t extent, int64_t sums) { return sums > 0 ? (extent + sums - 1) / sums : extent; }
  int64_t first(int64_t i) const { return columns_[i / channels_] * channels_ + i % channels_; }
  int64_t count(int64_t i) const { return columns_[i / channels_ + 1] - columns_[i / channels_]; }

  // Whether all addends of `sums_` sums are in windows of 2 * `lanes_`; then the tables are filled.
  bool tabulate() {
    const int64_t windows = vectors(coarse_, sums_);
    times_ = count(0);
    first_ = reinterpret_cast<Bits*>(memory_.data);
    count_ = first_ + windows * lanes_;
    entries_ = reinterpret_cast<Entry*>(count_ + windows * lanes_);
    for (int64_t v = 0; v < windows; ++v) {
      const int64_t begin = vector_begin(v, sums_, coarse_);
      int64_t low = fine_, high = 0, least = fine_, most = 0;
      for (int64_t i = begin; i < begin + sums_; ++i) {
        const int64_t n = count(i), last = first(i) + (n - 1) * channels_;
        if (n < least) least = n;
        if (n > most) most = n;
        if (n > 0 && first(i) < low) low = first(i);
        if (n > 0 && last > high) high = last;
      }
      if (low > high) low = high;
      if (least != times_ || most != times_) times_ = 0;
      if (high - low >= 2 * lanes_) return false;
      if (low > fine_ - 2 * lanes_) low = fine_ - 2 * lanes_;
      entries_[v] = Entry{static_cast<int32_t>(low), static_cast<int32_t>(least), static_cast<int32_t>(most)};
      for (int64_t k = 0; k < lanes_; ++k) {
        first_[v * lanes_ + k] = static_cast<Bits>(k < sums_ ? first(begin + k) - low : 0);
        count_[v * lanes_ + k] = static_cast<Bits>(k < sums_ ? count(begin + k) : 0);
      }
    }
    return true;
  }

  template <int kLanes>
  void make(const In* fine, int64_t stride, int64_t rows, In* coarse, T* sums) const {
    if (sums_ == kLanes && times_ == 2) return make<kLanes, kLanes, 2>(fine, stride, rows, coarse, sums);
    if (sums_ == kLanes) return make<kLanes, kLanes, 0>(fine, stride, rows, coarse, sums);
    if (sums_ == kLanes / 2 && times_ == 4) return make<kLanes, kLanes / 2, 4>(fine, stride, rows, coarse, sums);
    if (sums_ == kLanes / 2) return make<kLanes, kLanes / 2, 0>(fine, stride, rows, coarse, sums);
    if constexpr (kLanes >= 4)
      if (sums_ == kLanes / 4) return make<kLanes, kLanes / 4, 0>(fine, stride, rows, coarse, sums);
    if constexpr (kLanes >= 8)
      if (sums_ == kLanes / 8) return make<kLanes, kLanes / 8, 0>(fine, stride, rows, coarse, sums);
    if constexpr (kLanes >= 16) make<kLanes, kLanes / 16, 0>(fine, stride, rows, coarse, sums);
  }

  // kTimes: addends of every sum in a row, 0 if they differ.
  template <int kLanes, int kSums, int kTimes>
  void make(const In* fine, int64_t stride, int64_t rows, In* coarse, T* sums) const {
    using V = Vec<T, kLanes>;
    using Index = Vec<Bits, kLanes>;
    const int64_t windows = vectors(coarse_, kSums);
    if (rows <= 0) {
      __builtin_memset(static_cast<void*>(coarse), 0, static_cast<size_t>(coarse_) * sizeof(In));
      return;
    }
    // A fine row at a time: memory is read from end to end, and the sums stay in the first-level cache.
    for (int64_t r = 0; r < rows; ++r, fine += stride) {
      for (int64_t v = 0; v < windows; ++v) {
        const Entry entry = entries_[v];
        const Index first = load<kLanes, Bits>(first_ + v * kLanes);
        fetch_ahead(fine + entry.base), fetch_ahead(fine + entry.base + kLanes);
        const V low = load<kLanes, T>(fine + entry.base), high = load<kLanes, T>(fine + entry.base + kLanes);
        V sum = r == 0 ? V{} : load<kLanes, T>(sums + v * kLanes);
        if constexpr (kTimes > 0) {
          for (int k = 0; k < kTimes; ++k) sum += permute<T, kLanes>(low, high, first + static_cast<Bits>(k * channels_));
        } else {
          const Index count = load<kLanes, Bits>(count_ + v * kLanes);
          Index at = first;
          for (int32_t k = 0; k < entry.most; ++k, at += static_cast<Bits>(channels_)) {
            const V addend = permute<T, kLanes>(low, high, at);
            sum += k < entry.least ? addend : count > static_cast<Bits>(k) ? addend : V{};
          }
        }
        if (r < rows - 1) {
          store<kLanes>(sums + v * kLanes, sum);
        } else {
          Vec<T, kSums> made;
          __builtin_memcpy(&made, &sum, sizeof made);
          store<kSums>(coarse + vector_begin(v, kSums, coarse_), made);
        }
      }
    }
  }

  void make_singly(const In* fine, int64_t stride, int64_t rows, In* coarse) const {
    for (int64_t i = 0; i < coarse_; ++i) {
      Vec<T, 1> sum{};
      const int64_t addends = count(i);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < addends; ++k) sum += load<1, T>(fine + r * stride + first(i) + k * channels_);
      store<1>(coarse + i, sum);
    }
  }

  const int32_t* columns_;
  int64_t channels_, fine_, coarse_;
  Memory memory_;
  Bits *first_ = nullptr, *count_ = nullptr;
  Entry* entries_ = nullptr;
  int64_t lanes_ = 0, sums_ = 0, times_ = 0;
};

// Calls row(fine rows, how many, coarse row, worker) for every coarse row of every plane (of every image, if rows are of
// pixels).
template <class In, class Row>
void for_each_coarse_row(const Sum& s, bool of_pixels, const Parallel& parallel, const Row& row) {
  const ConstPlanes& fine = s.fine;
  const Planes& coarse = s.coarse;
  const int64_t planes = of_pixels ? 1 : coarse.channels, rows = coarse.batch * planes * coarse.height;
  const int64_t bytes = fine.batch * fine.channels * fine.height * fine.width * static_cast<int64_t>(sizeof(In));
  const int64_t row_bytes = bytes / rows + 1, rows_per_item = row_bytes < kItemBytes ? kItemBytes / row_bytes : 1;
  for_each_item(parallel, (rows + rows_per_item - 1) / rows_per_item, false, [&](int64_t item, int32_t worker) {
    const int64_t begin = item * rows_per_item, end = begin + rows_per_item < rows ? begin + rows_per_item : rows;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / coarse.height / planes, c = i / coarse.height % planes, y = i % coarse.height;
      row(static_cast<const In*>(fine.data) + n * fine.stride_n + c * fine.stride_c + s.rows[y] * fine.stride_h,
          s.rows[y + 1] - s.rows[y],
          static_cast<In*>(coarse.data) + n * coarse.stride_n + c * coarse.stride_c + y * coarse.stride_h, worker);
    }
  });
}

template <class T, class In>
Status sum_rows(const Sum& s, bool of_pixels, const Parallel& parallel) {
  const RowSums<T, In> sums(s, of_pixels ? s.coarse.channels : 1);
  const int64_t own = (sums.scratch() * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  Memory scratch(parallel.workers * own);
  if (!sums.valid() || !scratch.data) return Status::out_of_memory;
  for_each_coarse_row<In>(s, of_pixels, parallel, [&](const In* fine, int64_t rows, In* coarse, int32_t worker) {
    sums.make(fine, s.fine.stride_h, rows, coarse, reinterpret_cast<T*>(scratch.data + worker * own));
  });
  return Status::ok;
}

// kVectors vectors of the channels of one pixel.
template <class T, class In, int kLanes, int kVectors>
SEGOPS_INLINE void sum_pixel(const Sum& s, const In* fine, int64_t rows, int64_t columns, In* coarse) {
  Vec<T, kLanes> sum[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const In* pixel = fine + r * s.fine.stride_h;
    for (int64_t k = 0; k < columns; ++k, pixel += s.fine.stride_w)
      for (int v = 0; v < kVectors; ++v) sum[v] += load<kLanes, T>(pixel + v * kLanes);
  }
  for (int v = 0; v < kVectors; ++v) store<kLanes>(coarse + v * kLanes, sum[v]);
}

template <class T, class In>
void sum_pixels(const Sum& s, const Parallel& parallel) {
  constexpr int kNative = kNativeLanes<T>, kLeast = 16 / sizeof(T), kVectors = 4;
  const int64_t channels = s.coarse.channels;
  for_each_coarse_row<In>(s, true, parallel, [&](const In* fine, int64_t rows, In* coarse, int32_t) {
    for (int64_t x = 0; x < s.coarse.width; ++x) {
      const In* const from = fine + s.columns[x] * s.fine.stride_w;
      In* const to = coarse + x * s.coarse.stride_w;
      const int64_t columns = s.columns[x + 1] - s.columns[x];
      int64_t c = 0;
      for (; c + kVectors * kNative <= channels; c += kVectors * kNative)
        sum_pixel<T, In, kNative, kVectors>(s, from + c, rows, columns, to + c);
      for (; c + kNative <= channels; c += kNative) sum_pixel<T, In, kNative, 1>(s, from + c, rows, columns, to + c);
      for (; c + kLeast <= channels; c += kLeast) sum_pixel<T, In, kLeast, 1>(s, from + c, rows, columns, to + c);
      for (; c < channels; ++c) sum_pixel<T, In, 1, 1>(s, from + c, rows, columns, to + c);
    }
  });
}

// Layouts that differ.
template <class T, class In>
void sum_singly(const Sum& s, const Parallel& parallel) {
  for_each_coarse_row<In>(s, false, parallel, [&](const In* fine, int64_t rows, In* coarse, int32_t) {
    for (int64_t x = 0; x < s.coarse.width; ++x)
      sum_pixel<T, In, 1, 1>(s, fine + s.columns[x] * s.fine.stride_w, rows, s.columns[x + 1] - s.columns[x],
                             coarse + x * s.coarse.stride_w);
  });
}

template <class T, class In>
Status sum_image(const Sum& s, const Parallel& parallel) {
  const ConstPlanes& fine = s.fine;
  const Planes& coarse = s.coarse;
  if (fine.stride_w == 1 && coarse.stride_w == 1) return sum_rows<T, In>(s, false, parallel);
  if (fine.stride_c != 1 || coarse.stride_c != 1) return sum_singly<T, In>(s, parallel), Status::ok;
  const bool dense = fine.stride_w == fine.channels && coarse.stride_w == coarse.channels &&
                     fine.width * fine.channels < INT32_MAX && coarse.width * coarse.channels < INT32_MAX;
  if (dense && coarse.channels < kNativeLanes<T>) return sum_rows<T, In>(s, true, parallel);
  return sum_pixels<T, In>(s, parallel), Status::ok;
}

}  // namespace
}  // namespace segops::SEGOPS_ISA
