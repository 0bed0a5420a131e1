// CPU kernels of upsample_bilinear. Planar, the two coarse rows about an output row are interpolated horizontally into the
// first-level cache, where the output rows between them are blended from. Channels last, vectors of channels go along an
// output row, and what lies to their left and right is interpolated vertically in registers.
#include "dtypes.h"
#include "isa.h"
#include "upsample_bilinear_backward.h"
#include "upsample_bilinear_rows.h"

namespace segops::SEGOPS_ISA {
namespace {

// How an output is written past the caches: as it is computed, or a run of pixels at a time, whose channels are no whole
// lines.
enum class Streaming { none, direct, staged };
constexpr int64_t kStagedPixels = 64;

// Only where memory is warm and larger than a last-level cache, and rows (or pixels) begin at cache lines.
Streaming streaming_of(const Planes& to, bool warm, int64_t element) {
  constexpr int64_t kLastLevelCache = 32 << 20;
  const auto whole = [&](int64_t stride) { return stride * element % kLine == 0; };
  if (!warm || to.batch * to.channels * to.height * to.width * element < kLastLevelCache) return Streaming::none;
  if (reinterpret_cast<uintptr_t>(to.data) % kLine != 0 || !whole(to.stride_n) || !whole(to.stride_h))
    return Streaming::none;
  if (to.stride_w == 1) return whole(to.stride_c) && whole(to.width) ? Streaming::direct : Streaming::none;
  if (to.stride_c != 1) return Streaming::none;
  if (whole(to.stride_w) && whole(to.channels)) return Streaming::direct;
  return to.stride_w == to.channels && whole(to.width * to.channels) ? Streaming::staged : Streaming::none;
}

// Elements side by side, as bits.
template <class T>
SEGOPS_INLINE void copy_run(T* to, const T* from, int64_t n, bool stream) {
  constexpr int kFloats = kNativeLanes<float>;
  const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  if (!stream) {
    __builtin_memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  float* const words = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < bytes / 4; i += kFloats)
    store_streaming<kFloats, float, float>(words + i, load<kFloats, float>(reinterpret_cast<const float*>(from) + i));
}

// Horizontal interpolation of one coarse row to all outputs, and up to the padding.
template <class A>
struct Expand {
  static constexpr int kLanes = kNativeLanes<A>;
  static constexpr int64_t kRoom = 2 * kLanes;  // elements that may be read past a row's end

  const Taps<A>& taps;
  int64_t sources;  // vectors of inputs among which those of a vector of outputs lie: 1 or 2, or 0 for any number
  int64_t direct;   // outputs whose vectors lie within the row, to be read where it is

  Expand(const Taps<A>& t, double step) : taps(t), sources(0), direct(0) {
#if SEGOPS_VECTOR_BYTES == 64
    if (step > 1) return;
    sources = step * kLanes <= kLanes - 2 ? 1 : 2;
    while (direct + kLanes <= taps.out && taps.low[direct] + sources * kLanes <= taps.in) direct += kLanes;
#else
    (void)step;
#endif
  }

  // coarse: where the row would begin; the last input is there twice.
  template <int kSources, class From>
  void vectors(A* to, const From* coarse, int64_t begin, int64_t end) const {
    using B = Vec<BitsOf<A>, kLanes>;
    using V = Vec<A, kLanes>;
    for (int64_t x = begin; x < end; x += kLanes) {
      const int32_t first = taps.low[x];
      const B low = __builtin_convertvector(load<kLanes, int32_t>(taps.low + x) - first, B);
      const V weight = load<kLanes, A>(taps.weight + x), near = load<kLanes, A>(coarse + first);
      V left, right;
      if constexpr (kSources == 1) {
        left = __builtin_shuffle(near, low);
        right = __builtin_shuffle(near, low + 1);
      } else {
        const V far = load<kLanes, A>(coarse + first + kLanes);
        left = __builtin_shuffle(near, far, low);
        right = __builtin_shuffle(near, far, low + 1);
      }
      store<kLanes>(to + x, V((A(1) - weight) * left + weight * right));
    }
  }

  template <class From>
  void part(A* to, const From* coarse, int64_t begin, int64_t end) const {
    if (sources == 1) return vectors<1>(to, coarse, begin, end);
    if (sources == 2) return vectors<2>(to, coarse, begin, end);
    for (int64_t x = begin; x < end; ++x) {
      const A low = load<1, A>(coarse + taps.low[x])[0], high = load<1, A>(coarse + taps.low[x] + 1)[0];
      to[x] = (A(1) - taps.weight[x]) * low + taps.weight[x] * high;
    }
  }

  // staged: memory for a row and kRoom more.
  template <class T>
  void run(A* to, const T* row, int64_t stride, A* staged) const {
    const int64_t in_place = stride == 1 ? direct : 0;
    part(to, row, 0, in_place);
    if (in_place == taps.out) return;
    const int64_t first = taps.low[in_place], rest = taps.in - first;
    load_row<A, T>(staged, row + first * stride, stride, rest);
    staged[rest] = staged[rest - 1];
    part(to, static_cast<const A*>(staged) - first, in_place, taps.out);
  }
};

template <class T>
struct Forward {
  using A = typename AccumulatorOf<T>::type;

  const UpsampleBilinear& p;
  const Taps<A>&vertical, &horizontal;
  const Expand<A>& columns;
  Streaming streaming;

  static int64_t coarse_elements(const UpsampleBilinear& p) { return padded(p.input.width + Expand<A>::kRoom); }
  static int64_t fine_elements(const UpsampleBilinear& p) { return padded(p.output.width); }
  static int64_t scratch_elements(const UpsampleBilinear& p, bool across) {
    return across ? padded(kStagedPixels * p.output.channels) : coarse_elements(p) + 3 * fine_elements(p);
  }

  void planar(int64_t plane, int64_t first, int64_t end, A* scratch) const {
    const T* from = plane_of<const T>(p.input, plane);
    T* to = plane_of<T>(p.output, plane);
    A* const coarse = scratch;
    A* top = coarse + coarse_elements(p);
    A* bottom = top + fine_elements(p);
    A* const blended = bottom + fine_elements(p);
    const int64_t last = p.input.height - 1, width = p.output.width;
    const int64_t ahead = rows_ahead<T>(1, p.input.stride_h) * p.input.stride_h;
    const auto expand = [&](int64_t at, A* into) {
      const T* const row = from + at * p.input.stride_h;
      if (p.input.stride_w == 1)
        for (int64_t x = 0; x < p.input.width; x += kLine / static_cast<int64_t>(sizeof(T))) prefetch<1>(row + ahead + x);
      columns.run(into, row, p.input.stride_w, coarse);
    };
    int64_t held = -2;
    for (int64_t y = first; y < end; ++y) {
      const int64_t low = vertical.low[y];
      if (low != held) {
        if (low == held + 1) {
          A* const old = top;
          top = bottom;
          bottom = old;
        } else {
          expand(low, top);
        }
        expand(low < last ? low + 1 : last, bottom);
        held = low;
      }
      T* const row = to + y * p.output.stride_h;
      if (streaming == Streaming::direct) {
        blend_rows<true, T, A>(row, top, bottom, vertical.weight[y], width);
      } else if (p.output.stride_w == 1) {
        blend_rows<false, T, A>(row, top, bottom, vertical.weight[y], width);
      } else {
        blend_rows<false, A, A>(blended, top, bottom, vertical.weight[y], width);
        store_row<A, T>(row, p.output.stride_w, blended, width);
      }
    }
  }

  // A row of pixels of kVectors vectors of channels, which begin at `at`: going right, the coarse columns are interpolated
  // vertically, each once.
  template <bool kStream, int kLanes, int kVectors>
  void pixels(T* to, int64_t stride, const T* top, const T* bottom, A weight, const int64_t (&at)[kVectors], int64_t begin,
              int64_t end) const {
    using V = Vec<A, kLanes>;
    V left[kVectors] = {}, right[kVectors] = {};
    const int64_t last = p.input.width - 1, coarse_stride = p.input.stride_w;
    const A rest = A(1) - weight;
    const auto column = [&](int64_t x, V(&into)[kVectors]) {
      const T *upper = top + x * coarse_stride, *lower = bottom + x * coarse_stride;
      for (int k = 0; k < kVectors; ++k)
        into[k] = rest * load<kLanes, A>(upper + at[k]) + weight * load<kLanes, A>(lower + at[k]);
    };
    int64_t held = -2;
    for (int64_t x = begin; x < end; ++x, to += stride) {
      const int64_t low = horizontal.low[x];
      if (low != held) {
        if (low == held + 1)
          for (int k = 0; k < kVectors; ++k) left[k] = right[k];
        else
          column(low, left);
        column(low < last ? low + 1 : last, right);
        held = low;
      }
      const A share = horizontal.weight[x];
      for (int k = 0; k < kVectors; ++k) {
        const V value = (A(1) - share) * left[k] + share * right[k];
        if constexpr (kStream)
          store_streaming<kLanes, T, A>(to + at[k], value);
        else
          store<kLanes>(to + at[k], value);
      }
    }
  }

  // All channels of a row of pixels, in tiles of up to four vectors; the last vector overlaps the one before.
  template <bool kStream, int kLanes>
  void all_channels(T* to, int64_t stride, const T* top, const T* bottom, A weight, int64_t begin, int64_t end) const {
    const int64_t channels = p.input.channels;
    if constexpr (kLanes > 1)
      if (channels < kLanes) return all_channels<kStream, kLanes / 2>(to, stride, top, bottom, weight, begin, end);
    const auto tile = [&](auto vectors, int64_t c) {
      constexpr int kVectors = decltype(vectors)::value;
      int64_t at[kVectors];
      for (int k = 0; k < kVectors; ++k) at[k] = c + k * kLanes < channels - kLanes ? c + k * kLanes : channels - kLanes;
      pixels<kStream, kLanes, kVectors>(to, stride, top, bottom, weight, at, begin, end);
    };
    int64_t c = 0;
    for (; channels - c > 3 * kLanes; c += 4 * kLanes) tile(Lanes<4>{}, c);
    for (; channels - c > kLanes; c += 2 * kLanes) tile(Lanes<2>{}, c);
    if (c < channels) tile(Lanes<1>{}, c);
  }

  void across(int64_t image, int64_t first, int64_t end, T* staged) const {
    constexpr int kNative = kNativeLanes<A>;
    const T* from = static_cast<const T*>(p.input.data) + image * p.input.stride_n;
    T* const to = static_cast<T*>(p.output.data) + image * p.output.stride_n;
    const int64_t last = p.input.height - 1, width = p.output.width, stride = p.output.stride_w;
    for (int64_t y = first; y < end; ++y) {
      const int64_t low = vertical.low[y], high = low < last ? low + 1 : last;
      const T *top = from + low * p.input.stride_h, *bottom = from + high * p.input.stride_h;
      const A weight = vertical.weight[y];
      T* const row = to + y * p.output.stride_h;
      if (streaming == Streaming::none) {
        all_channels<false, kNative>(row, stride, top, bottom, weight, 0, width);
      } else if (streaming == Streaming::direct) {
        all_channels<true, kNative>(row, stride, top, bottom, weight, 0, width);
      } else {
        for (int64_t x = 0; x < width; x += kStagedPixels) {
          const int64_t count = width - x < kStagedPixels ? width - x : kStagedPixels;
          all_channels<false, kNative>(staged, stride, top, bottom, weight, x, x + count);
          copy_run(row + x * stride, staged, count * stride, true);
        }
      }
    }
  }
};

template <class T>
Status run_forward(const UpsampleBilinear& p, const Parallel& parallel) {
  using A = typename AccumulatorOf<T>::type;
  const bool across = across_channels(p.input) && across_channels(p.output);
  const Taps<A> vertical(p.vertical), horizontal(p.horizontal);
  const int64_t elements = padded(Forward<T>::scratch_elements(p, across));
  Memory scratch(parallel.workers * elements * static_cast<int64_t>(sizeof(A)));
  if (!vertical.ok() || !horizontal.ok() || !scratch.data) return Status::out_of_memory;
  const Expand<A> columns(horizontal, p.horizontal.step);
  const Forward<T> forward{p, vertical, horizontal, columns, streaming_of(p.output, p.warm, sizeof(T))};
  A* const memory = reinterpret_cast<A*>(scratch.data);
  const Planes& to = p.output;
  const RowItems items(across ? to.batch : to.batch * to.channels, to.height, across ? to.width * to.channels : to.width);
  items.run(parallel, [&](int64_t image, int64_t first, int64_t end, int32_t worker) {
    A* const own = memory + worker * elements;
    if (across)
      forward.across(image, first, end, reinterpret_cast<T*>(own));
    else
      forward.planar(image, first, end, own);
  });
  return Status::ok;
}

template <class T>
Status run_copy(const ConstPlanes& from, const Planes& to, bool warm, const Parallel& parallel) {
  const bool across = across_channels(from) && across_channels(to),
             stream = streaming_of(to, warm, sizeof(T)) == Streaming::direct;
  const int64_t channels = to.channels, width = to.width;
  const RowItems items(across ? to.batch : to.batch * channels, to.height, across ? width * channels : width);
  items.run(parallel, [&](int64_t image, int64_t first, int64_t end, int32_t) {
    const T* source = across ? static_cast<const T*>(from.data) + image * from.stride_n : plane_of<const T>(from, image);
    T* const target = across ? static_cast<T*>(to.data) + image * to.stride_n : plane_of<T>(to, image);
    for (int64_t y = first; y < end; ++y) {
      const T* s = source + y * from.stride_h;
      T* const t = target + y * to.stride_h;
      if (across)
        for (int64_t x = 0; x < width; ++x) copy_run(t + x * to.stride_w, s + x * from.stride_w, channels, stream);
      else if (from.stride_w == 1 && to.stride_w == 1)
        copy_run(t, s, width, stream);
      else
        for (int64_t x = 0; x < width; ++x) t[x * to.stride_w] = s[x * from.stride_w];
    }
  });
  return Status::ok;
}

bool supported(const LinearAxis& axis) { return axis.in < INT32_MAX && axis.out < INT32_MAX; }

}  // namespace

Status upsample_bilinear2d(const UpsampleBilinear& p, const Parallel& parallel) {
  if (!supported(p.vertical) || !supported(p.horizontal)) return Status::unsupported;
  return as_float(p.dtype, [&]<class, class In>() { return run_forward<In>(p, parallel); });
}

Status upsample_bilinear2d_backward(const UpsampleBilinearBackward& p, const Parallel& parallel) {
  if (!supported(p.vertical) || !supported(p.horizontal)) return Status::unsupported;
  return as_float(p.dtype, [&]<class, class In>() { return run_backward<In>(p, parallel); });
}

Status upsample_cat(const UpsampleCat& p, const Parallel& parallel) {
  const Status status = upsample_bilinear2d(p.upsample, parallel);
  if (status != Status::ok) return status;
  return as_bits(p.upsample.dtype,
                 [&]<class Bits>() { return run_copy<Bits>(p.skip, p.skip_output, p.upsample.warm, parallel); });
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(upsample_bilinear2d, UpsampleBilinear)
SEGOPS_LAUNCHER(upsample_bilinear2d_backward, UpsampleBilinearBackward)
SEGOPS_LAUNCHER(upsample_cat, UpsampleCat)
#endif
