// upsample_argmax on the CPU: full-resolution logits exist for one tile of a row at a time, in registers.
//
// An image is cut into bands of output rows, a band into tiles of kTile columns. For a tile, the two coarse rows between
// which an output row lies are interpolated horizontally, all classes of them, into buffers that stay in the first-level
// cache. Output rows that lie between the same two coarse rows share them: what is left for each pixel and class is one
// vertical blend, a comparison and two selections.
#include "segops/upsample_argmax.h"

#include "dtypes.h"
#include "isa.h"
#include "parallel.h"
#include "vec.h"
#include "work.h"

namespace segops::SEGOPS_ISA {
namespace {

constexpr int kTile = 64;                 // columns of a tile
constexpr int kStagedWidth = 3 * kTile;   // room for the coarse columns of a tile, and for a vector that begins in the last
constexpr int64_t kItemValues = 1 << 19;  // interpolated logits of an item of work: 50 us

// Where the output's columns read, padded to whole tiles with copies of the last column. The taps of a vector of outputs lie
// in one vector of inputs that begins at `base`, where outputs are closer than inputs: then `low` and `high` are its lanes.
// Elsewhere base is 0, and they are columns.
template <class T>
struct Columns {
  int64_t tiles;
  int64_t* base;  // of each vector
  bool* close;    // whether all vectors of a tile are of the first kind
  BitsOf<T>*low, *high;
  T* weight;

  static int64_t bytes(int64_t width) {
    return (width + kTile) * static_cast<int64_t>(sizeof(int64_t) + 3 * sizeof(T) + 1) + 5 * 64;
  }

  Columns(const LinearAxis& axis, char* memory) : tiles((axis.out + kTile - 1) / kTile) {
    constexpr int kLanes = kNativeLanes<T>;
    const int64_t columns = tiles * kTile;
    auto take = [&memory](int64_t bytes) {
      char* begin = memory;
      memory += (bytes + 63) / 64 * 64;
      return begin;
    };
    base = reinterpret_cast<int64_t*>(take(columns / kLanes * static_cast<int64_t>(sizeof(int64_t))));
    low = reinterpret_cast<BitsOf<T>*>(take(columns * static_cast<int64_t>(sizeof(T))));
    high = reinterpret_cast<BitsOf<T>*>(take(columns * static_cast<int64_t>(sizeof(T))));
    weight = reinterpret_cast<T*>(take(columns * static_cast<int64_t>(sizeof(T))));
    close = reinterpret_cast<bool*>(take(tiles));
    for (int64_t tile = 0; tile < tiles; ++tile) {
      close[tile] = true;
      for (int64_t first = tile * kTile; first < (tile + 1) * kTile; first += kLanes) {
        for (int64_t i = first; i < first + kLanes; ++i) {
          const LinearTap tap = linear_tap(axis, i < axis.out ? i : axis.out - 1);
          low[i] = static_cast<BitsOf<T>>(tap.low);
          high[i] = static_cast<BitsOf<T>>(tap.high);
          weight[i] = static_cast<T>(tap.weight);
        }
        // No vector of inputs passes the end of its row, unless that is shorter than one.
        const int64_t last = axis.in > kLanes ? axis.in - kLanes : 0, begin = low[first] < last ? low[first] : last;
        if (high[first + kLanes - 1] - begin >= kLanes) close[tile] = false;
        base[first / kLanes] = begin;
      }
      if (close[tile])
        for (int64_t i = tile * kTile; i < (tile + 1) * kTile; ++i) {
          low[i] -= static_cast<BitsOf<T>>(base[i / kLanes]);
          high[i] -= static_cast<BitsOf<T>>(base[i / kLanes]);
        }
    }
  }
};

template <class T>
SEGOPS_INLINE Vec<T, kNativeLanes<T>> blend(Vec<T, kNativeLanes<T>> low, Vec<T, kNativeLanes<T>> high,
                                            Vec<T, kNativeLanes<T>> weight) {
  return (T(1) - weight) * low + weight * high;
}

// The constants of 2^r for |r| <= 1/2, highest power first: relative error 1.1e-7, none at 0.
constexpr int kPowers = 6;
constexpr float kPower[kPowers] = {0.00132647273f, 0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1.f};

// Adds e^x to each of kTile sums that are 1 or more, for x <= 0, in the fewest operations: what is small need not be exact.
template <int kLanes, int kTile>
SEGOPS_INLINE void add_exp(Vec<float, kLanes> (&x)[kTile], Vec<float, kLanes> (&sum)[kTile]) {
  using M = MathConstants<float>;
  using V = Vec<float, kLanes>;
  using B = Vec<int32_t, kLanes>;
  const V lowest = broadcast<kLanes, float>(-86.f);
  V n[kTile], q[kTile];
  for (int k = 0; k < kTile; ++k) x[k] = x[k] < lowest ? lowest : x[k];
  for (int k = 0; k < kTile; ++k) n[k] = x[k] * M::kLog2e + M::kRound;
  for (int k = 0; k < kTile; ++k) x[k] = x[k] * M::kLog2e - (n[k] - M::kRound);
  for (int k = 0; k < kTile; ++k) q[k] = x[k] * kPower[0] + kPower[1];
  for (int term = 2; term < kPowers; ++term)
    for (int k = 0; k < kTile; ++k) q[k] = q[k] * x[k] + kPower[term];
  for (int k = 0; k < kTile; ++k)
    sum[k] += reinterpret_cast<V>(reinterpret_cast<B>(q[k]) + (reinterpret_cast<B>(n[k]) << M::kMantissaBits));
}

template <int kLanes, int kTile>
SEGOPS_INLINE void add_exp(Vec<double, kLanes> (&x)[kTile], Vec<double, kLanes> (&sum)[kTile]) {
  Vec<int64_t, kLanes> unused{};
  exp_tile<double, kLanes, kTile, false>(x, unused);
  for (int k = 0; k < kTile; ++k) sum[k] += x[k];
}

// A coarse row as the columns of a tile see it: [C][kTile].
template <class T>
struct CoarseRow {
  T* values;
  int64_t row;
  bool finite;
};

template <class T, class In>
struct Argmax {
  static constexpr int kLanes = kNativeLanes<T>;
  static constexpr int kVectors = kTile / kLanes;
  static constexpr int kBlock = kVectors < 4 ? kVectors : 4;  // vectors whose winners are held in registers
  using V = Vec<T, kLanes>;
  using B = BitsOf<T>;
  using Labels = Vec<B, kLanes>;

  const UpsampleArgmax& p;
  const Columns<T>& columns;

  // Two coarse rows, the columns they are made of, and what probabilities are computed of.
  static int64_t scratch(int64_t classes) { return classes * (3 * kTile + kStagedWidth) * static_cast<int64_t>(sizeof(T)); }

  // The coarse columns of a tile, class by class, from a layout of which vectors cannot be loaded.
  const T* stage(const In* row, int64_t tile, T* staged) const {
    const int64_t begin = columns.base[tile * kVectors], last = (tile + 1) * kTile - 1;
    const int64_t end = columns.base[last / kLanes] + columns.high[last] + 1;
    for (int64_t x = begin; x < end; ++x)
      for (int64_t c = 0; c < p.logits.channels; ++c)
        staged[c * kStagedWidth + x - begin] = load<1, T>(row + c * p.logits.stride_c + x * p.logits.stride_w)[0];
    return staged - begin;
  }

  // Returns whether all values are finite.
  template <class From>
  bool across(const From* row, int64_t stride, int64_t tile, T* to) const {
    V weight[kVectors];
    Labels low[kVectors], high[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int64_t first = tile * kTile + v * kLanes;
      weight[v] = load<kLanes, T>(columns.weight + first);
      low[v] = *reinterpret_cast<const Labels*>(columns.low + first);
      high[v] = *reinterpret_cast<const Labels*>(columns.high + first);
    }
    const int64_t* base = columns.base + tile * kVectors;
    V zero{};
    for (int64_t c = 0; c < p.logits.channels; ++c) {
      for (int v = 0; v < kVectors; ++v) {
        const V coarse = load<kLanes, T>(row + c * stride + base[v]);
        const V value = blend<T>(__builtin_shuffle(coarse, low[v]), __builtin_shuffle(coarse, high[v]), weight[v]);
        store<kLanes>(to + c * kTile + v * kLanes, value);
        zero += value * T(0);
      }
    }
    bool finite = true;
    for (int i = 0; i < kLanes; ++i) finite &= zero[i] == T(0);
    return finite;
  }

  // Downwards, or as wide apart: column by column.
  bool across_apart(const In* row, int64_t tile, T* to) const {
    T zero = 0;
    for (int i = 0; i < kTile; ++i) {
      const int64_t at = tile * kTile + i;
      const In *left = row + columns.low[at] * p.logits.stride_w, *right = row + columns.high[at] * p.logits.stride_w;
      const T weight = columns.weight[at];
      for (int64_t c = 0; c < p.logits.channels; ++c) {
        const T value = (T(1) - weight) * load<1, T>(left + c * p.logits.stride_c)[0] +
                        weight * load<1, T>(right + c * p.logits.stride_c)[0];
        to[c * kTile + i] = value;
        zero += value * T(0);
      }
    }
    return zero == T(0);
  }

  void read(int64_t n, int64_t y, int64_t tile, CoarseRow<T>& to, T* staged) const {
    const In* row = static_cast<const In*>(p.logits.data) + n * p.logits.stride_n + y * p.logits.stride_h;
    to.row = y;
    if (!columns.close[tile])
      to.finite = across_apart(row, tile, to.values);
    else if (p.logits.stride_w == 1 && p.logits.width >= kLanes)
      to.finite = across(row, p.logits.stride_c, tile, to.values);
    else
      to.finite = across(stage(row, tile, staged), kStagedWidth, tile, to.values);
  }

  // The largest logit and its class in kBlock vectors of pixels. Of equals the first; kNan: NaN counts as largest. With
  // `kept`, which is [C][kBlock * kLanes], the logits stay there.
  template <bool kNan, bool kKeep>
  SEGOPS_INLINE void winners(const T* top, const T* bottom, int64_t classes, V keep, V weight, V (&best)[kBlock],
                             Labels (&label)[kBlock], T* kept) {
    Labels own{};
    for (int64_t c = 0; c < classes; ++c) {
      for (int v = 0; v < kBlock; ++v) {
        const V value =
            keep * load<kLanes, T>(top + c * kTile + v * kLanes) + weight * load<kLanes, T>(bottom + c * kTile + v * kLanes);
        if constexpr (kKeep) store<kLanes>(kept + (c * kBlock + v) * kLanes, value);
        if (c == 0) {
          best[v] = value;
          label[v] = Labels{};
          continue;
        }
        Labels better = value > best[v];
        if constexpr (kNan) better |= (value != value) & (best[v] == best[v]);
        best[v] = better ? value : best[v];
        label[v] = better ? own : label[v];
      }
      own += B(1);
    }
  }

  // The softmax probability of the largest logit; NaN where that is infinite, as from a softmax.
  SEGOPS_INLINE void probabilities(const T* kept, int64_t classes, const V (&best)[kBlock], V (&score)[kBlock]) {
    const V nan = broadcast<kLanes, T>(static_cast<T>(__builtin_nan("")));
    V sum[kBlock] = {};
    for (int64_t c = 0; c < classes; ++c) {
      V value[kBlock];
      for (int v = 0; v < kBlock; ++v) value[v] = load<kLanes, T>(kept + (c * kBlock + v) * kLanes) - best[v];
      add_exp<kLanes, kBlock>(value, sum);
    }
    for (int v = 0; v < kBlock; ++v) score[v] = best[v] - best[v] == T(0) ? T(1) / sum[v] : nan;
  }

  template <class Label>
  SEGOPS_INLINE void store_labels(Label* to, Labels label, int64_t count) {
    const auto narrow = __builtin_convertvector(label, Vec<Label, kLanes>);
    if (count >= kLanes)
      *reinterpret_cast<Unaligned<Label, kLanes>*>(to) = narrow;
    else
      for (int64_t i = 0; i < count; ++i) to[i] = narrow[i];
  }

  void store_labels(int64_t at, Labels label, int64_t count) const {
    switch (p.labels_dtype) {
      case Dtype::uint8: return store_labels(static_cast<uint8_t*>(p.labels) + at, label, count);
      case Dtype::int16: return store_labels(static_cast<int16_t*>(p.labels) + at, label, count);
      case Dtype::int32: return store_labels(static_cast<int32_t*>(p.labels) + at, label, count);
      default: return store_labels(static_cast<int64_t*>(p.labels) + at, label, count);
    }
  }

  // One output row of a tile: `at` is its first pixel in the results, `count` how many the row has.
  void row(const CoarseRow<T>& top, const CoarseRow<T>& bottom, T down, int64_t at, int64_t count, T* kept) const {
    const V weight = broadcast<kLanes, T>(down), keep = broadcast<kLanes, T>(T(1) - down);
    for (int64_t i = 0; i < kTile && i < count; i += kBlock * kLanes) {
      V best[kBlock] = {};
      Labels label[kBlock] = {};
      const T *above = top.values + i, *below = bottom.values + i;
      const int64_t classes = p.logits.channels;
      if (!(top.finite && bottom.finite))
        winners<true, true>(above, below, classes, keep, weight, best, label, kept);
      else if (p.score)
        winners<false, true>(above, below, classes, keep, weight, best, label, kept);
      else
        winners<false, false>(above, below, classes, keep, weight, best, label, kept);
      for (int v = 0; v < kBlock; ++v) store_labels(at + i + v * kLanes, label[v], count - i - v * kLanes);
      if (!p.score) continue;
      V score[kBlock];
      probabilities(kept, classes, best, score);
      T* to = static_cast<T*>(p.score) + at + i;
      for (int v = 0; v < kBlock; ++v) {
        const int64_t left = count - i - v * kLanes;
        if (left >= kLanes)
          store<kLanes>(to + v * kLanes, score[v]);
        else
          for (int64_t k = 0; k < left; ++k) to[v * kLanes + k] = score[v][k];
      }
    }
  }

  // Output rows begin .. end of image n.
  void band(int64_t n, int64_t begin, int64_t end, char* memory) const {
    const int64_t height = p.vertical.out, width = p.horizontal.out;
    T* const values = reinterpret_cast<T*>(memory);
    T* const kept = values + 2 * kTile * p.logits.channels;
    T* const staged = kept + kTile * p.logits.channels;
    for (int64_t tile = 0; tile < columns.tiles; ++tile) {
      CoarseRow<T> rows[2] = {{values, -1, true}, {values + kTile * p.logits.channels, -1, true}};
      CoarseRow<T>*top = &rows[0], *bottom = &rows[1];
      for (int64_t y = begin; y < end; ++y) {
        const LinearTap tap = linear_tap(p.vertical, y);
        if (bottom->row == tap.low) {
          CoarseRow<T>* const passed = top;
          top = bottom;
          bottom = passed;
        }
        if (top->row != tap.low) read(n, tap.low, tile, *top, staged);
        if (tap.high != tap.low && bottom->row != tap.high) read(n, tap.high, tile, *bottom, staged);
        row(*top, tap.high == tap.low ? *top : *bottom, static_cast<T>(tap.weight), (n * height + y) * width + tile * kTile,
            width - tile * kTile, kept);
      }
    }
  }
};

template <class T, class In>
Status argmax(const UpsampleArgmax& p, const Parallel& parallel) {
  const int64_t height = p.vertical.out, width = p.horizontal.out, classes = p.logits.channels;
  if (p.logits.batch == 0) return Status::ok;
  // Bands of a few coarse rows at least: each reads those at its edges once more.
  const int64_t least = 4 * ((height + p.logits.height - 1) / p.logits.height);
  int64_t rows = kItemValues / (width * classes);
  if (rows < least) rows = least;
  if (rows > height) rows = height;
  const int64_t bands = (height + rows - 1) / rows, scratch = (Argmax<T, In>::scratch(classes) + 63) / 64 * 64;
  const Memory taps(Columns<T>::bytes(width)), memory(scratch * parallel.workers);
  if (!taps.data || !memory.data) return Status::out_of_memory;
  const Columns<T> columns(p.horizontal, taps.data);
  const Argmax<T, In> all{p, columns};
  for_each_item(parallel, p.logits.batch * bands, height * width * classes * p.logits.batch < 1 << 15,
                [&](int64_t item, int32_t worker) {
                  const int64_t begin = item % bands * rows, end = begin + rows < height ? begin + rows : height;
                  all.band(item / bands, begin, end, memory.data + worker * scratch);
                });
  return Status::ok;
}

}  // namespace

Status upsample_argmax(const UpsampleArgmax& p, const Parallel& parallel) {
  return as_float(p.logits_dtype, [&]<class T, class In>() { return argmax<T, In>(p, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(upsample_argmax, UpsampleArgmax)
#endif
