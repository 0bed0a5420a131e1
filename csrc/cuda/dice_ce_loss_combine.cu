#include "dice_ce_loss_combine.cuh"

namespace segops::cuda::dice_ce {
namespace {

constexpr int kCombineThreads = 128, kCombineWarps = kCombineThreads / device::kWarp;

// Adds up the chunks in order: a thread a sum, and one block more for the cross-entropy and the bad labels.
__global__ void __launch_bounds__(kCombineThreads, 1)
    dice_ce_loss_combine_kernel(Totals to, int64_t chunks_of_image, int64_t blocks, Partial partial) {
  const int64_t width = 3 * to.classes;
  if (blockIdx.x + 1 < gridDim.x) {
    const int64_t index = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x;
    if (index >= to.batch * width) return;
    const double* from = partial.overlap + index / width * chunks_of_image * width + index % width;
    double total = 0;
    for (int64_t i = 0; i < chunks_of_image; ++i) total += from[i * width];
    to.overlap[index] = total;
    return;
  }
  SHARED_ARRAY(double, scratch, kCombineWarps);
  SHARED_ARRAY(BadData, bad_of_warp, kCombineWarps);
  double loss = 0, share = 0;
  BadData bad{0, 0, 0};
  for (int64_t i = threadIdx.x; i < blocks; i += kCombineThreads) {
    loss += partial.ce[2 * i];
    share += partial.ce[2 * i + 1];
    bad = merge(bad, partial.bad[i]);
  }
  loss = block_sum<kCombineThreads>(loss, scratch);
  share = block_sum<kCombineThreads>(share, scratch);
  bad = warp_merge(bad);
  if (threadIdx.x % device::kWarp == 0) bad_of_warp[threadIdx.x / device::kWarp] = bad;
  SYNC_THREADS();
  if (threadIdx.x == 0) {
    to.ce[0] = loss;
    to.ce[1] = share;
    for (int w = 1; w < kCombineWarps; ++w) bad = merge(bad, bad_of_warp[w]);
    *to.bad = bad;
  }
}

}  // namespace

cudaError_t combine(const Totals& totals, int64_t chunks_of_image, int64_t blocks, const Partial& partial,
                    cudaStream_t stream) {
  const int64_t sums = totals.overlap ? totals.batch * 3 * totals.classes : 0;
  return LAUNCH(dice_ce_loss_combine_kernel, static_cast<unsigned>((sums + kCombineThreads - 1) / kCombineThreads + 1),
                kCombineThreads, 0, stream, totals, chunks_of_image, blocks, partial);
}

}  // namespace segops::cuda::dice_ce
