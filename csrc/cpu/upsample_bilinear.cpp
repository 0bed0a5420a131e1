// CPU kernels of upsample_bilinear. Planar, the two coarse rows about an output row are interpolated horizontally into the
// first-level cache, where the output rows between them are blended from. Channels last, it is vertical first: a pixel of
// the blended row is a row of channels.
#include "isa.h"
#include "upsample_bilinear_backward.h"
#include "upsample_bilinear_rows.h"

namespace segops::SEGOPS_ISA {
namespace {

// Whether memory is warm and larger than a last-level cache, and what is written at a time begins at cache lines.
bool worth_streaming(const Planes& to, bool warm, int64_t element) {
  constexpr int64_t kLastLevelCache = 32 << 20;
  const auto whole = [&](int64_t stride) { return stride * element % kLine == 0; };
  if (!warm || to.batch * to.channels * to.height * to.width * element < kLastLevelCache) return false;
  if (reinterpret_cast<uintptr_t>(to.data) % kLine != 0 || !whole(to.stride_n) || !whole(to.stride_h)) return false;
  if (to.stride_w == 1) return whole(to.stride_c) && whole(to.width);
  return to.stride_c == 1 && whole(to.stride_w) && whole(to.channels);
}

// Horizontal interpolation of one coarse row, with room for a vector past its end, to all outputs (and up to the padding).
template <class A>
void expand_row(A* to, const A* coarse, const Taps<A>& taps, bool up) {
  constexpr int kLanes = kNativeLanes<A>;
#if SEGOPS_VECTOR_BYTES == 64
  if (up) {
    // The inputs of a vector of outputs lie within two vectors.
    using B = Vec<BitsOf<A>, kLanes>;
    for (int64_t x = 0; x < taps.out; x += kLanes) {
      const int32_t first = taps.low[x];
      const B low = __builtin_convertvector(load<kLanes, int32_t>(taps.low + x) - first, B);
      const auto left = load<kLanes, A>(coarse + first), right = load<kLanes, A>(coarse + first + kLanes);
      const auto weight = load<kLanes, A>(taps.weight + x);
      store<kLanes>(to + x, Vec<A, kLanes>((A(1) - weight) * __builtin_shuffle(left, right, low) +
                                           weight * __builtin_shuffle(left, right, low + 1)));
    }
    return;
  }
#endif
  (void)up, (void)kLanes;
  for (int64_t x = 0; x < taps.out; ++x) {
    const A* at = coarse + taps.low[x];
    to[x] = (A(1) - taps.weight[x]) * at[0] + taps.weight[x] * at[1];
  }
}

template <class T>
struct Forward {
  using A = typename AccumulatorOf<T>::type;
  static constexpr int64_t kPad = 4 * kTapsPad;

  const UpsampleBilinear& p;
  const Taps<A>&vertical, &horizontal;
  bool stream;

  // A row's end is repeated, so that low + 1 is always there.
  static int64_t coarse_elements(const UpsampleBilinear& p) { return padded(p.input.width) + kPad; }
  static int64_t fine_elements(const UpsampleBilinear& p) { return padded(p.output.width); }
  static int64_t scratch_elements(const UpsampleBilinear& p, bool across) {
    return across ? padded(p.input.width * p.input.channels) : coarse_elements(p) + 3 * fine_elements(p);
  }

  void planar(int64_t plane, int64_t first, int64_t end, A* scratch) const {
    const T* from = plane_of<const T>(p.input, plane);
    T* to = plane_of<T>(p.output, plane);
    A* const coarse = scratch;
    A* top = coarse + coarse_elements(p);
    A* bottom = top + fine_elements(p);
    A* const blended = bottom + fine_elements(p);
    const bool up = p.horizontal.step <= 1;
    const int64_t last = p.input.height - 1, width = p.output.width;
    const auto expand = [&](int64_t row, A* into) {
      load_row<A, T>(coarse, from + row * p.input.stride_h, p.input.stride_w, p.input.width);
      coarse[p.input.width] = coarse[p.input.width - 1];
      expand_row<A>(into, coarse, horizontal, up);
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
      if (stream) {
        blend_rows<true, T, A>(row, top, bottom, vertical.weight[y], width);
      } else if (p.output.stride_w == 1) {
        blend_rows<false, T, A>(row, top, bottom, vertical.weight[y], width);
      } else {
        blend_rows<false, A, A>(blended, top, bottom, vertical.weight[y], width);
        store_row<A, T>(row, p.output.stride_w, blended, width);
      }
    }
  }

  template <bool kStream>
  void across(int64_t image, int64_t first, int64_t end, A* blended) const {
    const T* from = static_cast<const T*>(p.input.data) + image * p.input.stride_n;
    T* const to = static_cast<T*>(p.output.data) + image * p.output.stride_n;
    const int64_t channels = p.input.channels, last = p.input.height - 1, last_column = p.input.width - 1;
    for (int64_t y = first; y < end; ++y) {
      const int64_t low = vertical.low[y], high = low < last ? low + 1 : last;
      const T *top = from + low * p.input.stride_h, *bottom = from + high * p.input.stride_h;
      const A weight = vertical.weight[y];
      if (p.input.stride_w == channels)
        blend_rows<false, A, T>(blended, top, bottom, weight, p.input.width * channels);
      else
        for (int64_t x = 0; x < p.input.width; ++x)
          blend_rows<false, A, T>(blended + x * channels, top + x * p.input.stride_w, bottom + x * p.input.stride_w, weight,
                                  channels);
      T* const row = to + y * p.output.stride_h;
      for (int64_t x = 0; x < p.output.width; ++x) {
        const int64_t left = horizontal.low[x], right = left < last_column ? left + 1 : left;
        blend_rows<kStream, T, A>(row + x * p.output.stride_w, blended + left * channels, blended + right * channels,
                                  horizontal.weight[x], channels);
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
  const Forward<T> forward{p, vertical, horizontal, worth_streaming(p.output, p.warm, sizeof(T))};
  A* const memory = reinterpret_cast<A*>(scratch.data);
  const Planes& to = p.output;
  const RowItems items(across ? to.batch : to.batch * to.channels, to.height, across ? to.width * to.channels : to.width);
  items.run(parallel, [&](int64_t image, int64_t first, int64_t end, int32_t worker) {
    A* const own = memory + worker * elements;
    if (!across)
      forward.planar(image, first, end, own);
    else if (forward.stream)
      forward.template across<true>(image, first, end, own);
    else
      forward.template across<false>(image, first, end, own);
  });
  return Status::ok;
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

template <class T>
Status run_copy(const ConstPlanes& from, const Planes& to, bool warm, const Parallel& parallel) {
  const bool across = across_channels(from) && across_channels(to), stream = worth_streaming(to, warm, sizeof(T));
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
  switch (p.dtype) {
    case Dtype::float32: return run_forward<float>(p, parallel);
    case Dtype::float64: return run_forward<double>(p, parallel);
    case Dtype::bfloat16: return run_forward<BFloat16>(p, parallel);
    case Dtype::float16: return run_forward<Float16>(p, parallel);
    default: return Status::unsupported;
  }
}

Status upsample_bilinear2d_backward(const UpsampleBilinearBackward& p, const Parallel& parallel) {
  if (!supported(p.vertical) || !supported(p.horizontal)) return Status::unsupported;
  switch (p.dtype) {
    case Dtype::float32: return run_backward<float>(p, parallel);
    case Dtype::float64: return run_backward<double>(p, parallel);
    case Dtype::bfloat16: return run_backward<BFloat16>(p, parallel);
    case Dtype::float16: return run_backward<Float16>(p, parallel);
    default: return Status::unsupported;
  }
}

Status upsample_cat(const UpsampleCat& p, const Parallel& parallel) {
  const Status status = upsample_bilinear2d(p.upsample, parallel);
  if (status != Status::ok) return status;
  switch (p.upsample.dtype) {
    case Dtype::float32: return run_copy<uint32_t>(p.skip, p.skip_output, p.upsample.warm, parallel);
    case Dtype::float64: return run_copy<uint64_t>(p.skip, p.skip_output, p.upsample.warm, parallel);
    default: return run_copy<uint16_t>(p.skip, p.skip_output, p.upsample.warm, parallel);
  }
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(upsample_bilinear2d, UpsampleBilinear)
SEGOPS_LAUNCHER(upsample_bilinear2d_backward, UpsampleBilinearBackward)
SEGOPS_LAUNCHER(upsample_cat, UpsampleCat)
#endif
