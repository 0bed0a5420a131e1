// upsample_cat: the interpolation and the copy of the skip connection go to their channels of the result, each written once.
#include "move.cuh"

namespace segops::cuda {
namespace {

template <class U, int V, bool kAcross>
__global__ void __launch_bounds__(kPlaneThreads, 1) upsample_cat_skip_kernel(Move p, Tiling tiling) {
  move_strip<U, V, kAcross>(p, tiling);
}

template <class U>
cudaError_t copy(Move p, cudaStream_t stream) {
  return choose_vector<U>(p, [&]<int V, bool kAcross>(bool across) {
    const Tiling tiling(p.output, V, across, kMostMovedRows);
    return over(tiling, [&] {
      return LAUNCH((upsample_cat_skip_kernel<U, V, kAcross>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
    });
  });
}

}  // namespace

Failure upsample_cat(const UpsampleCat& p, void* stream) {
  if (const Failure failed = upsample_bilinear2d(p.upsample, stream)) return failed;
  const SourceAxis vertical{SourceAxis::kPicked, {}, 1}, horizontal{SourceAxis::kPicked, {}, 1};
  const Move skip{p.skip, p.skip_output, vertical, horizontal, false};
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float_bits(p.upsample.dtype, [&]<class U>(U) { return copy<U>(skip, queue); }));
}

}  // namespace segops::cuda
