// upsample_bilinear2d forward: every output is written once; going down its strip, a thread reads each coarse row once.
#include "bilinear.cuh"

namespace segops::cuda {
namespace {

constexpr int kMostRows = 32;  // a lane works out the tap of each

// kAcross: a vector is V channels of a pixel, or, with V == 1, one element of any layout.
template <class T, int V, bool kAcross>
__global__ void __launch_bounds__(kPlaneThreads, 1) upsample_bilinear_kernel(UpsampleBilinear p, Tiling tiling) {
  using A = AccumulatorOf<T>;
  const Place place(tiling, V);
  int own_row = place.row + lane_of_warp();
  if (own_row >= tiling.rows) own_row = tiling.rows - 1;
  const LinearTap tap = linear_tap(p.vertical, own_row);
  const int own_low = static_cast<int>(tap.low), last = static_cast<int>(p.vertical.in) - 1;
  const A own_weight = static_cast<A>(tap.weight);

  const int first = kAcross ? place.column : place.column * V;
  const T* const plane = place.begin<const T>(p.input);
  T* to = place.begin<T>(p.output) + place.row * p.output.stride_h + first * p.output.stride_w;
  const bool whole = kAcross || first + V <= p.output.width;
  const auto columns = [&] {
    if constexpr (kAcross)
      return PixelColumn<T, V>(p.horizontal, first, p.input.stride_w);
    else
      return RowColumns<T, V>(p.horizontal, first);
  }();

  CoarseRows<A, V> coarse;
  for (int r = 0; r < place.rows; ++r, to += p.output.stride_h) {
    const int low = device::shuffle(own_low, r);
    const A weight = device::shuffle(own_weight, r);
    if (!place.active) continue;
    coarse.move_to(columns, plane, p.input.stride_h, low, last);
    T out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] = narrow<T>(blend(coarse.top[v], coarse.bottom[v], weight));
    if (whole) {
      store_vector(to, out);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (first + v < p.output.width) to[v] = out[v];
    }
  }
}

template <class T, int V, bool kAcross>
cudaError_t launch(const UpsampleBilinear& p, bool across, cudaStream_t stream) {
  const Tiling tiling(p.output, V, across, kMostRows);
  return over(tiling, [&] {
    return LAUNCH((upsample_bilinear_kernel<T, V, kAcross>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
  });
}

template <class T>
cudaError_t forward(const UpsampleBilinear& p, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const bool planar = is_planar(p.output);
  if (vectors_fit(p.output, sizeof(T), planar)) {
    if (planar && is_planar(p.input)) return launch<T, V, false>(p, false, stream);
    if (!planar && vectors_fit(p.input, sizeof(T), false)) return launch<T, V, true>(p, true, stream);
  }
  return launch<T, 1, true>(p, !planar, stream);
}

}  // namespace

Failure upsample_bilinear2d(const UpsampleBilinear& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.dtype, [&]<class T>(T) { return forward<T>(p, queue); }));
}

}  // namespace segops::cuda
