// upsample_nearest2d forward, and bed_of_nails2d both ways: every output is written once, with one of the inputs or zero.
#include "move.cuh"

namespace segops::cuda {
namespace {

template <class U, int V, bool kAcross>
__global__ void __launch_bounds__(kPlaneThreads, 1) upsample_nearest_kernel(Move p, Tiling tiling) {
  move_strip<U, V, kAcross>(p, tiling);
}

template <class U>
cudaError_t move(Move p, cudaStream_t stream) {
  return choose_vector<U>(p, [&]<int V, bool kAcross>(bool across) {
    const Tiling tiling(p.output, V, across, kMostMovedRows);
    return over(tiling, [&] {
      return LAUNCH((upsample_nearest_kernel<U, V, kAcross>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
    });
  });
}

Failure move(Dtype dtype, const Move& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float_bits(dtype, [&]<class U>(U) { return move<U>(p, queue); }));
}

}  // namespace

Failure upsample_nearest2d(const UpsampleNearest& p, void* stream) {
  const SourceAxis vertical{SourceAxis::kNearest, p.vertical, 1}, horizontal{SourceAxis::kNearest, p.horizontal, 1};
  return move(p.dtype, Move{p.input, p.output, vertical, horizontal, false}, stream);
}

Failure bed_of_nails2d(const BedOfNails& p, void* stream) {
  const SourceAxis axis{p.transposed ? SourceAxis::kPicked : SourceAxis::kSpread, {}, static_cast<unsigned>(p.scale)};
  return move(p.dtype, Move{p.input, p.output, axis, axis, false}, stream);
}

}  // namespace segops::cuda
