// upsample_argmax: a thread owns a few output pixels, one below the other, and goes through the classes once, with the
// largest logits so far in registers. Coarse logits are read as often as strips and neighbouring lanes share them, which the
// first-level cache serves: the least that has to come from memory is one read of the coarse logits.
#include "bilinear.cuh"
#include "segops/upsample_argmax.h"

namespace segops::cuda {
namespace {

constexpr int kStrip = 4;  // pixels of a thread: of more, the addresses alone would fill its registers

__device__ __forceinline__ void store_label(void* labels, Dtype dtype, int64_t at, int label) {
  switch (dtype) {
    case Dtype::uint8: static_cast<uint8_t*>(labels)[at] = static_cast<uint8_t>(label); break;
    case Dtype::int16: static_cast<int16_t*>(labels)[at] = static_cast<int16_t>(label); break;
    case Dtype::int32: static_cast<int32_t*>(labels)[at] = label; break;
    default: static_cast<int64_t*>(labels)[at] = label;
  }
}

template <class T>
__global__ void __launch_bounds__(kPlaneThreads, 1) upsample_argmax_kernel(UpsampleArgmax p, Tiling tiling) {
  using A = AccumulatorOf<T>;
  const Place place(tiling, 1);
  int own_row = place.row + lane_of_warp() % kStrip;
  // Below the strip, what it has read already is looked at once more.
  if (own_row >= place.row + place.rows) own_row = place.row + place.rows - 1;
  const LinearTap tap = linear_tap(p.vertical, own_row);
  int low[kStrip];
  A weight[kStrip];
#pragma unroll
  for (int r = 0; r < kStrip; ++r) {
    low[r] = device::shuffle(static_cast<int>(tap.low), r);
    weight[r] = device::shuffle(static_cast<A>(tap.weight), r);
  }
  if (!place.active) return;

  const PixelColumn<T, 1> column(p.horizontal, place.column, p.logits.stride_w);
  const T* const image = static_cast<const T*>(p.logits.data) + place.image * p.logits.stride_n;
  const int last = static_cast<int>(p.vertical.in) - 1;
  // Calls each(r, logit) for every pixel r of the strip.
  const auto interpolate = [&](const T* plane, auto each) {
    CoarseRows<A, 1> coarse;
#pragma unroll
    for (int r = 0; r < kStrip; ++r) {
      coarse.move_to(column, plane, p.logits.stride_h, low[r], last);
      each(r, blend(coarse.top[0], coarse.bottom[0], weight[r]));
    }
  };

  A best[kStrip];
  int label[kStrip];
  interpolate(image, [&](int r, A logit) {
    best[r] = logit;
    label[r] = 0;
  });
  const int classes = static_cast<int>(p.logits.channels);
  const T* plane = image;
  for (int c = 1; c < classes; ++c) {
    plane += p.logits.stride_c;
    interpolate(plane, [&](int r, A logit) {
      // The first NaN stands as well.
      if (!(logit <= best[r]) && best[r] == best[r]) {
        best[r] = logit;
        label[r] = c;
      }
    });
  }

  const int64_t first = (place.image * p.vertical.out + place.row) * p.horizontal.out + place.column;
#pragma unroll
  for (int r = 0; r < kStrip; ++r)
    if (r < place.rows) store_label(p.labels, p.labels_dtype, first + r * p.horizontal.out, label[r]);
  if (p.score == nullptr) return;

  A sum[kStrip] = {};
  plane = image;
  for (int c = 0; c < classes; ++c, plane += p.logits.stride_c)
    interpolate(plane, [&](int r, A logit) { sum[r] += exponential<A>(logit - best[r]); });
#pragma unroll
  for (int r = 0; r < kStrip; ++r)
    if (r < place.rows) static_cast<A*>(p.score)[first + r * p.horizontal.out] = A(1) / sum[r];
}

template <class T>
cudaError_t argmax(const UpsampleArgmax& p, cudaStream_t stream) {
  const int64_t height = p.vertical.out, width = p.horizontal.out;
  const Planes labels{p.labels, p.logits.batch, 1, height, width, height * width, height * width, width, 1};
  const Tiling tiling(labels, 1, false, kStrip);
  if (!tiling.fits() || p.logits.channels > INT32_MAX) return cudaErrorInvalidValue;
  if (tiling.blocks == 0) return cudaSuccess;
  return LAUNCH(upsample_argmax_kernel<T>, tiling.grid(), tiling.threads(), 0, stream, p, tiling);
}

}  // namespace

Failure upsample_argmax(const UpsampleArgmax& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.logits_dtype, [&]<class T>(T) { return argmax<T>(p, queue); }));
}

}  // namespace segops::cuda
