// Linear interpolation along rows, in vectors, and its transpose: what losses do with rows of coarse logits.
//
// A target row is cut into strips of up to `capacity` columns, so that what a strip needs stays in the first-level cache.
// Nothing shrinks, so a vector of target columns reads a vector of neighbouring logits, in an order that is known from the
// shape: loads and permutes, no gathers.
#pragma once
#include "segops/interpolate.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {

// `size` target columns from `first` on (`padded` with the lanes beyond them), which read `span` logits from `low` on.
struct Strip {
  int64_t first, size, padded, low, span;
};

template <class T>
class Columns {
 public:
  static constexpr int kLanes = kNativeLanes<T>;
  using V = Vec<T, kLanes>;
  using Index = BitsOf<T>;
  using Indices = Vec<Index, kLanes>;

  Columns(const LinearAxis& axis, int64_t capacity, int64_t pad)
      : axis_(axis),
        capacity_(capacity),
        pad_(pad),
        strips_((axis.out + capacity - 1) / capacity),
        vectors_(strips_ * capacity / kLanes),
        taps_(strips_ * capacity * kTap),
        base_(vectors_ * 8) {
    if (!allocated()) return;
    for (int64_t x = 0; x < axis.out; ++x) {
      const LinearTap tap = linear_tap(axis, x);
      if (x % kLanes == 0) base()[x / kLanes] = tap.low - strip(x / capacity).low;
      index()[x] = static_cast<Index>(tap.low - linear_tap(axis, x / kLanes * kLanes).low);
      keep()[x] = static_cast<T>(1. - tap.weight);
      share()[x] = static_cast<T>(tap.weight);
    }
  }

  bool allocated() const { return taps_.data && base_.data; }
  int64_t strips() const { return strips_; }

  Strip strip(int64_t s) const {
    const int64_t first = s * capacity_, size = axis_.out - first < capacity_ ? axis_.out - first : capacity_;
    const int64_t low = linear_tap(axis_, first).low;
    return Strip{first, size, (size + pad_ - 1) / pad_ * pad_, low, linear_tap(axis_, first + size - 1).high - low + 1};
  }

  // Elements that a row of a strip's logits needs: beyond the last one lies a copy of it, then what vectors may touch.
  static int64_t source_pitch(int64_t capacity) { return capacity + 2 + 2 * kLanes; }

  // to[c][x] = keep * from[c][low] + share * from[c][low + 1] for the strip's columns x.
  void widen(int64_t s, const T* from, int64_t pitch, T* to, int64_t classes) const {
    const Strip strip = this->strip(s);
    const int64_t stride = capacity_;
    for (int64_t i = 0; i < strip.padded; i += kLanes, to += kLanes) {
      const int64_t x = strip.first + i;
      const Indices order = load<kLanes, Index>(index() + x);
      const V keeps = load<kLanes, T>(keep() + x), shares = load<kLanes, T>(share() + x);
      const T* source = from + base()[x / kLanes];
      T* wide = to;
      for (int64_t c = 0; c < classes; ++c, source += pitch, wide += stride) {
        const V low = __builtin_shuffle(load<kLanes, T>(source), order);
        const V high = __builtin_shuffle(load<kLanes, T>(source + 1), order);
        store<kLanes>(wide, keeps * low + shares * high);
      }
    }
  }

 protected:
  static constexpr int64_t kTap = sizeof(Index) + 2 * sizeof(T);
  Index* index() const { return reinterpret_cast<Index*>(taps_.data); }
  T* keep() const { return reinterpret_cast<T*>(taps_.data + strips_ * capacity_ * static_cast<int64_t>(sizeof(Index))); }
  T* share() const { return keep() + strips_ * capacity_; }
  int64_t* base() const { return reinterpret_cast<int64_t*>(base_.data); }

  const LinearAxis axis_;
  const int64_t capacity_, pad_, strips_, vectors_;

 private:
  const Memory taps_, base_;
};

// The transpose. A vector of target columns adds to a few neighbouring logits, which have lanes of their own; where they are
// few, each has several lanes, whose sums are folded at the end. Step by step every lane takes one of the columns.
template <class T>
class ColumnSums : public Columns<T> {
 public:
  using Base = Columns<T>;
  using typename Base::Index;
  using typename Base::Indices;
  using typename Base::V;
  static constexpr int kLanes = Base::kLanes;
  static constexpr int kWindows = 2;  // of lanes: a vector of columns reads at most one logit more than it has lanes

  ColumnSums(const LinearAxis& axis, int64_t capacity, int64_t pad)
      : Base(axis, capacity, pad),
        windows_(this->vectors_ * kWindows * static_cast<int64_t>(sizeof(Window))),
        steps_(this->vectors_ * kWindows * kLanes * static_cast<int64_t>(sizeof(Step))) {
    if (!allocated()) return;
    for (int64_t s = 0; s < this->strips_; ++s)
      for (int64_t i = 0; i < this->strip(s).size; i += kLanes) plan(this->strip(s), i);
  }

  bool allocated() const { return Base::allocated() && windows_.data && steps_.data; }

  // Adds what the strip's columns `from` [C, capacity] are to the logits' row `to` [C, pitch].
  void add_narrowed(int64_t s, const T* from, T* to, int64_t pitch, int64_t classes) const {
    const Strip strip = this->strip(s);
    for (int64_t i = 0; i < strip.size; i += kLanes) {
      for (int k = 0; k < kWindows; ++k) {
        const int64_t at = (strip.first + i) / kLanes * kWindows + k;
        const Window& window = windows()[at];
        int64_t c = 0;
        for (; window.steps && c + 4 <= classes; c += 4) add_window<4>(window, at, from + i, to, pitch, c);
        for (; window.steps && c < classes; ++c) add_window<1>(window, at, from + i, to, pitch, c);
      }
    }
  }

 private:
  struct Window {
    int64_t first;         // logit of lane 0
    int32_t width, steps;  // lanes of one copy, a power of two
  };
  struct Step {
    Index index[kLanes];  // column, or -1
    T weight[kLanes];
  };

  Window* windows() const { return reinterpret_cast<Window*>(windows_.data); }
  Step* steps() const { return reinterpret_cast<Step*>(steps_.data); }

  void plan(const Strip& strip, int64_t i) {
    const int64_t x = strip.first + i, end = strip.first + strip.size < x + kLanes ? strip.first + strip.size : x + kLanes;
    const int64_t low = linear_tap(this->axis_, x).low, count = linear_tap(this->axis_, end - 1).high - low + 1;
    for (int k = 0; k < kWindows && k * kLanes < count; ++k) {
      const int64_t at = x / kLanes * kWindows + k;
      const int64_t left = count - k * kLanes, most = left < kLanes ? left : kLanes;
      int32_t width = 1;
      while (width < most) width *= 2;
      Window& window = windows()[at] = Window{low + k * kLanes, width, 0};
      int32_t given[kLanes] = {};
      const auto give = [&](int64_t logit, int64_t column, double weight) {
        const int64_t lane = logit - window.first;
        if (lane < 0 || lane >= most) return;
        const int32_t copies = kLanes / width, which = given[lane]++;
        Step& step = steps()[at * kLanes + which / copies];
        for (; window.steps <= which / copies; ++window.steps)
          for (int l = 0; l < kLanes; ++l) steps()[at * kLanes + window.steps].index[l] = -1;
        step.index[which % copies * width + lane] = static_cast<Index>(column - x);
        step.weight[which % copies * width + lane] = static_cast<T>(weight);
      };
      for (int64_t column = x; column < end; ++column) {
        const LinearTap tap = linear_tap(this->axis_, column);
        if (tap.high == tap.low) {
          give(tap.low, column, 1.);
        } else {
          give(tap.low, column, 1. - tap.weight);
          give(tap.high, column, tap.weight);
        }
      }
    }
  }

  template <int kRows>
  void add_window(const Window& window, int64_t at, const T* from, T* to, int64_t pitch, int64_t c) const {
    V total[kRows] = {};
    const Step* const begin = steps() + at * kLanes;
    for (const Step* step = begin; step < begin + window.steps; ++step) {
      const Indices index = load<kLanes, Index>(step->index);
      const V weight = load<kLanes, T>(step->weight);
      for (int r = 0; r < kRows; ++r) {
        const V value = __builtin_shuffle(load<kLanes, T>(from + (c + r) * this->capacity_), index);
        total[r] += index >= 0 ? weight * value : V{};  // zero times another column's NaN is not zero
      }
    }
    Indices lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    for (int32_t fold = kLanes / 2; fold >= window.width; fold /= 2)
      for (int r = 0; r < kRows; ++r) total[r] += __builtin_shuffle(total[r], lane + static_cast<Index>(fold));
    const auto own = lane < static_cast<Index>(window.width);
    for (int r = 0; r < kRows; ++r) {
      T* row = to + (c + r) * pitch + window.first;
      store<kLanes>(row, load<kLanes, T>(row) + (own ? total[r] : V{}));
    }
  }

  const Memory windows_, steps_;
};

}  // namespace segops::SEGOPS_ISA
