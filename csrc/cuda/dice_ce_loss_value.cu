// The loss and its derivatives from the sums: O(N C) scalar maths of segops/dice_ce_loss.h, a cell a thread, in one block.
#include "reduce.cuh"

namespace segops::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) dice_ce_loss_value_kernel(DiceCeLossValue p) {
  using namespace dice_ce_loss;
  SHARED_ARRAY(int64_t, count_scratch, kThreads / device::kWarp);
  SHARED_ARRAY(double, sum_scratch, kThreads / device::kWarp);
  const int64_t cells = p.with_overlap ? rows(p) * p.classes : 0;
  int64_t counted = 0;
  for (int64_t i = threadIdx.x; i < cells; i += kThreads) counted += counts(p, i / p.classes, i % p.classes);
  counted = block_sum<kThreads>(counted, count_scratch);
  const double share = share_of(p, counted);
  double dice = 0;
  for (int64_t i = threadIdx.x; i < cells; i += kThreads) dice += cell(p, i / p.classes, i % p.classes, share);
  dice = block_sum<kThreads>(dice, sum_scratch);
  if (threadIdx.x == 0) finish(p, dice, counted);
}

}  // namespace

Failure dice_ce_loss_value(const DiceCeLossValue& p, void* stream) {
  return failure(LAUNCH(dice_ce_loss_value_kernel, 1, kThreads, 0, static_cast<cudaStream_t>(stream), p));
}

}  // namespace segops::cuda
