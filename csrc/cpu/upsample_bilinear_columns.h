// The taps of an axis as backward sees them, and the horizontal half of its gather where rows are planar.
#pragma once
#include "upsample_bilinear_rows.h"

namespace segops::SEGOPS_ISA {

// The taps of an axis as its inputs see them: input j is read by the outputs from first[j - 1] on with weight rising[i], and
// from first[j] to first[j + 1] with weight falling[i].
template <class A>
struct Windows {
  int64_t in, out;
  Memory memory;
  A *rising, *falling;
  int32_t* first;

  explicit Windows(const Taps<A>& taps)
      : in(taps.in), out(taps.out), memory(2 * out * static_cast<int64_t>(sizeof(A)) + (in + 1) * 4) {
    if (!memory.data || !taps.ok()) return;
    rising = reinterpret_cast<A*>(memory.data);
    falling = rising + out;
    first = reinterpret_cast<int32_t*>(falling + out);
    int64_t j = 0;
    for (int64_t i = 0; i < out; ++i) {
      for (; j <= taps.low[i]; ++j) first[j] = static_cast<int32_t>(i);
      rising[i] = taps.weight[i];
      falling[i] = taps.low[i] == in - 1 ? A(1) : A(1) - taps.weight[i];
    }
    for (; j <= in; ++j) first[j] = static_cast<int32_t>(out);
  }
  bool ok() const { return memory.data != nullptr; }

  int64_t begin(int64_t j) const { return j > 0 ? first[j - 1] : 0; }
  int64_t middle(int64_t j) const { return first[j]; }
  int64_t end(int64_t j) const { return first[j + 1]; }
  A weight(int64_t j, int64_t i) const { return i < first[j] ? rising[i] : falling[i]; }
};

// grad[j] = sum of weight * sums[i] over the window of column j. By what the axis is, fastest first:
// * A scale of 2, 4 or 8 from sizes alone: all windows are 2 * scale outputs long, and lie side by side in as many vectors
// of
//   products. A tree of pairwise sums turns these into a vector of inputs.
// * Windows of a vector of inputs that begin within two vectors of outputs: tap after tap is one permutation of two loads.
// * Otherwise taps are gathered, or windows summed one by one where there is less than a vector of them.
template <class A>
struct ColumnGather {
  static constexpr int kLanes = kNativeLanes<A>;
  static constexpr int64_t kFront = 16;  // zeros before the row of sums
  using V = Vec<A, kLanes>;
  using B = Vec<BitsOf<A>, kLanes>;

  const Windows<A>& windows;
  int scale;    // of the tree, or 0
  bool tabled;  // whether there are tables of taps
  bool near;    // whether two vectors hold all first taps
  Memory weight_memory, memory;
  A* weights;      // tree: [vectors, 2 * scale, kLanes]; tables: [taps of all vectors, kLanes], -0 for no tap
  int32_t* begin;  // tables: [vectors, kLanes], first outputs of the windows
  int32_t* taps;   // tables: [vectors], the longest windows

  static int tree_scale(const LinearAxis& axis) {
    for (int scale = 2; scale <= 8; scale *= 2)
      if (2 * scale <= kLanes && !axis.align_corners && axis.out == axis.in * scale && axis.step * scale == 1) return scale;
    return 0;
  }
  int64_t vectors() const { return (windows.in + kLanes - 1) / kLanes; }
  // The row of sums, with the zeros before it and room for taps past its end.
  static int64_t row_elements(int64_t out) { return kFront + 2 * padded(out) + 20 * kTapsPad; }

  // The input whose window has lane l of vector r of the tree.
  static int64_t input_of(int scale, int64_t vector, int r, int l) {
    const int each = kLanes / (2 * scale);
    return vector * kLanes + r / 2 * 2 * each + r % 2 + l / (2 * scale) * 2;
  }
  int64_t lane(int64_t vector, int l) const {
    const int64_t j = vector * kLanes + l;
    return j < windows.in ? j : windows.in - 1;
  }
  int64_t longest(int64_t vector) const {
    int64_t most = 0;
    for (int l = 0; l < kLanes; ++l) {
      const int64_t j = lane(vector, l), length = windows.end(j) - windows.begin(j);
      most = length > most ? length : most;
    }
    return most;
  }
  int64_t weight_bytes() {
    int64_t rows = vectors() * 2 * scale;
    if (!scale) {
      for (int64_t v = 0; v < vectors(); ++v) rows += longest(v);
      tabled = windows.in >= kLanes && rows * kLanes <= 8 * (windows.in + windows.out);
      if (!tabled) rows = 0;
    }
    return rows * kLanes * static_cast<int64_t>(sizeof(A));
  }

  ColumnGather(const Windows<A>& w, const LinearAxis& axis)
      : windows(w),
        scale(tree_scale(axis)),
        tabled(false),
        near(SEGOPS_VECTOR_BYTES == 64),
        weight_memory(weight_bytes()),
        memory(tabled ? vectors() * (kLanes + 1) * 4 : 0) {
    if (!ok()) return;
    weights = reinterpret_cast<A*>(weight_memory.data);
    begin = reinterpret_cast<int32_t*>(memory.data);
    taps = begin + vectors() * kLanes;
    if (scale) plant_tree();
    if (tabled) fill_tables();
  }
  bool ok() const { return weight_memory.data && memory.data; }

  void plant_tree() {
    for (int64_t v = 0; v < vectors(); ++v)
      for (int r = 0; r < 2 * scale; ++r)
        for (int l = 0; l < kLanes; ++l) {
          const int64_t j = input_of(scale, v, r, l), i = scale * j - scale / 2 + l % (2 * scale);
          const bool inside = j < windows.in && i >= 0 && i < windows.out;
          weights[(v * 2 * scale + r) * kLanes + l] = inside ? windows.weight(j, i) : A(0);
        }
  }

  void fill_tables() {
    A* to = weights;
    for (int64_t v = 0; v < vectors(); ++v) {
      taps[v] = static_cast<int32_t>(longest(v));
      for (int l = 0; l < kLanes; ++l) {
        const int64_t j = lane(v, l), first = windows.begin(j);
        begin[v * kLanes + l] = static_cast<int32_t>(first);
        near = near && first - begin[v * kLanes] < 2 * kLanes;
        for (int64_t k = 0; k < taps[v]; ++k)
          to[k * kLanes + l] = first + k < windows.end(j) ? windows.weight(j, first + k) : -A(0);
      }
      to += taps[v] * kLanes;
    }
  }

  template <int kCount>
  SEGOPS_INLINE void pair_sums(V (&v)[kCount], int count) {
    B even = {}, odd = {};
    for (int l = 0; l < kLanes; ++l) {
      even[l] = 2 * l;
      odd[l] = 2 * l + 1;
    }
    for (int k = 0; k < count / 2; ++k)
      v[k] = __builtin_shuffle(v[2 * k], v[2 * k + 1], even) + __builtin_shuffle(v[2 * k], v[2 * k + 1], odd);
  }

  template <int kScale>
  void sum_tree(A* grad, const A* sums) const {
    constexpr int kVectors = 2 * kScale, kEach = kLanes / kVectors;
    B order = {};
    for (int l = 0; l < kLanes; ++l) order[l] = (l / (2 * kEach) * 2 + l % 2) * kEach + l % (2 * kEach) / 2;
    for (int64_t v = 0; v < vectors(); ++v) {
      const A* const own = weights + v * kVectors * kLanes;
      V part[kVectors];
#pragma GCC unroll 16
      for (int r = 0; r < kVectors; ++r)
        part[r] =
            load<kLanes, A>(own + r * kLanes) * load<kLanes, A>(sums + kScale * input_of(kScale, v, r, 0) - kScale / 2);
#pragma GCC unroll 4
      for (int count = kVectors; count > 1; count /= 2) pair_sums(part, count);
      store<kLanes>(grad + v * kLanes, __builtin_shuffle(part[0], order));
    }
    // These have the weight zero in the second input: NaN and infinity reach it.
    for (int64_t i = 0; windows.in > 1 && i < kScale / 2; ++i) grad[1] += 0 * sums[i];
  }

  // kNear: see `near`.
  template <bool kNear>
  void sum_tables(A* grad, const A* sums) const {
    const A* weight = weights;
    for (int64_t v = 0; v < vectors(); ++v) {
      const int32_t* const own = begin + v * kLanes;
      const B from_first = __builtin_convertvector(load<kLanes, int32_t>(own) - own[0], B);
      V sum = {};
      for (int64_t k = 0; k < taps[v]; ++k, weight += kLanes) {
        V value = {};
        if constexpr (kNear)
          value =
              __builtin_shuffle(load<kLanes, A>(sums + own[0] + k), load<kLanes, A>(sums + own[0] + k + kLanes), from_first);
        else
          for (int l = 0; l < kLanes; ++l) value[l] = sums[own[l] + k];
        const V w = load<kLanes, A>(weight);
        sum += reinterpret_cast<B>(w) < 0 ? V{} : w * value;
      }
      store<kLanes>(grad + v * kLanes, sum);
    }
  }

  // grad: with room up to padded(in).
  void run(A* grad, const A* sums) const {
    if constexpr (kLanes >= 4)
      if (scale == 2) return sum_tree<2>(grad, sums);
    if constexpr (kLanes >= 8)
      if (scale == 4) return sum_tree<4>(grad, sums);
    if constexpr (kLanes >= 16)
      if (scale == 8) return sum_tree<8>(grad, sums);
    if (tabled) return near ? sum_tables<true>(grad, sums) : sum_tables<false>(grad, sums);
    for (int64_t j = 0; j < windows.in; ++j) {
      A sum = 0;
      for (int64_t i = windows.begin(j); i < windows.end(j); ++i) sum += windows.weight(j, i) * sums[i];
      grad[j] = sum;
    }
  }
};

}  // namespace segops::SEGOPS_ISA
