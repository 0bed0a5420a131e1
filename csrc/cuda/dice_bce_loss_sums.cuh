// How a block of dice_bce_loss adds up what its threads have summed, in an order that the shape alone decides.
#pragma once
#include "dice_bce_loss_lines.cuh"
#include "dice_ce_loss_combine.cuh"

namespace segops::cuda::dice_bce {

// Of a block of at most kMost threads, all of them.
template <int kMost>
__device__ __forceinline__ void finish_cross_entropy(double loss, double weight, BadData bad,
                                                     const dice_ce::Partial& partial) {
  SHARED_ARRAY(double, sums, 2 * (kMost / device::kWarp));
  SHARED_ARRAY(BadData, bad_of_warp, kMost / device::kWarp);
  const int warp = static_cast<int>(threadIdx.x) / device::kWarp, warps = static_cast<int>(blockDim.x) / device::kWarp;
  loss = warp_sum(loss);
  weight = warp_sum(weight);
  if (device::any(bad.count > 0)) bad = warp_merge(bad);
  if (threadIdx.x % device::kWarp == 0) {
    sums[2 * warp] = loss;
    sums[2 * warp + 1] = weight;
    bad_of_warp[warp] = bad;
  }
  SYNC_THREADS();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; ++w) {
    loss += sums[2 * w];
    weight += sums[2 * w + 1];
    bad = merge(bad, bad_of_warp[w]);
  }
  partial.ce[2 * blockIdx.x] = loss;
  partial.ce[2 * blockIdx.x + 1] = weight;
  partial.bad[blockIdx.x] = bad;
}

// Between the columns of a vector's elements, so that neighbouring elements are in different banks.
template <int V>
constexpr int kColumnPitch = kThreads + device::kWarp / V;

// The sums I, P and T of the block's channels, from `columns`: [sum][element of a vector][thread]. A barrier must precede.
// As many lanes add up one of them as the block has: neighbouring sums are written together.
template <class A, int V>
__device__ __forceinline__ void finish_channels(const A* columns, const Share<V, true>& share, double* out) {
  const Cut& cut = share.cut;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), own = share.own();
  // Channels of rows of several pixels come again in each.
  const int pixels = (share.width() + own - 1) / own, terms = cut.depth * pixels;
  int lanes = 1;
  while (lanes < device::kWarp && 2 * lanes * 3 * own <= threads) lanes *= 2;
  const int lane = thread % lanes;
  for (int base = 0; base < 3 * own; base += threads / lanes) {
    const int index = base + thread / lanes, which = index / own, channel = index - which * own;
    double total = 0;
    for (int i = lane; index < 3 * own && i < terms; i += lanes) {
      const int slot = i / pixels, element = (i - slot * pixels) * own + channel;
      if (element >= share.width()) continue;
      total += static_cast<double>(columns[(which * V + element % V) * kColumnPitch<V> + slot * cut.slab + element / V]);
    }
    for (int mask = lanes / 2; mask > 0; mask /= 2) total += device::shuffle_xor(total, mask);
    if (lane == 0 && index < 3 * own) out[which * share.channels + share.channel_at(channel)] = total;
  }
}

}  // namespace segops::cuda::dice_bce
