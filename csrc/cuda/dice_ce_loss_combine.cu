#include "dice_ce_loss_tile.cuh"

namespace segops::cuda::dice_ce {
namespace {

// Adds up the chunks in order: a thread a sum, and one block more for the cross-entropy and the bad labels.
__global__ void __launch_bounds__(kThreads<float>, 1)
    dice_ce_loss_combine_kernel(DiceCeLossStatistics p, int64_t of_image, Partial partial) {
  const int64_t c = p.in.classes, width = 3 * c + 2, chunks = p.in.batch * of_image;
  if (blockIdx.x + 1 < gridDim.x) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads<float> + threadIdx.x;
    if (index >= p.in.batch * 3 * c) return;
    const double* from = partial.sums + index / (3 * c) * of_image * width + index % (3 * c);
    double total = 0;
    for (int64_t i = 0; i < of_image; ++i) total += from[i * width];
    p.overlap[index] = total;
    return;
  }
  SHARED_ARRAY(double, scratch, kThreads<float> / device::kWarp);
  SHARED_ARRAY(BadData, bad_of_warp, kThreads<float> / device::kWarp);
  double loss = 0, share = 0;
  BadData bad{0, 0, 0};
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads<float>) {
    loss += partial.sums[i * width + 3 * c];
    share += partial.sums[i * width + 3 * c + 1];
    bad = merge(bad, partial.bad[i]);
  }
  loss = block_sum<kThreads<float>>(loss, scratch);
  share = block_sum<kThreads<float>>(share, scratch);
  bad = warp_merge(bad);
  if (lane_id() == 0) bad_of_warp[warp_id()] = bad;
  SYNC_THREADS();
  if (threadIdx.x == 0) {
    p.ce[0] = loss;
    p.ce[1] = share;
    for (int w = 1; w < kThreads<float> / device::kWarp; ++w) bad = merge(bad, bad_of_warp[w]);
    *p.bad_labels = bad;
  }
}

}  // namespace

cudaError_t combine(const DiceCeLossStatistics& p, int64_t of_image, const Partial& partial, cudaStream_t stream) {
  const int64_t sums = p.overlap ? p.in.batch * 3 * p.in.classes : 0;
  return LAUNCH(dice_ce_loss_combine_kernel, static_cast<unsigned>((sums + kThreads<float> - 1) / kThreads<float> + 1),
                kThreads<float>, 0, stream, p, of_image, partial);
}

}  // namespace segops::cuda::dice_ce
