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

// The sums I, P and T of the channels of rows, from those of each thread's V elements; `columns` is for all of them. A few
// lanes add up one of them.
template <class A, int V>
__device__ __forceinline__ void finish_channels(const A (&at_target)[V], const A (&probs)[V], const A (&targets)[V],
                                                const Share<V, true>& share, A* columns, double* out) {
  const Cut& cut = share.cut;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    columns[v * kThreads + thread] = share.active ? at_target[v] : A(0);
    columns[(V + v) * kThreads + thread] = share.active ? probs[v] : A(0);
    columns[(2 * V + v) * kThreads + thread] = share.active ? targets[v] : A(0);
  }
  SYNC_THREADS();
  // Elements of the slab's rows, side by side; channels of rows of several pixels come again in each.
  const int first = share.first_vector * V, rest = cut.row_elements - first, slab = cut.slab * V;
  const int width = rest < slab ? rest : slab, own = width < share.channels ? width : share.channels;
  const int pixels = width / own, terms = cut.depth * pixels;
  int lanes = 1;
  while (lanes < device::kWarp && lanes * 8 < terms) lanes *= 2;
  const int lane = thread % lanes;
  for (int base = 0; base < 3 * own; base += kThreads / lanes) {
    const int index = base + thread / lanes, which = index / own, channel = index - which * own;
    double total = 0;
    for (int i = lane; index < 3 * own && i < terms; i += lanes) {
      const int slot = i / pixels, element = (i - slot * pixels) * own + channel;
      total += static_cast<double>(columns[(which * V + element % V) * kThreads + slot * cut.slab + element / V]);
    }
    for (int mask = lanes / 2; mask > 0; mask /= 2) total += device::shuffle_xor(total, mask);
    if (lane == 0 && index < 3 * own) out[which * share.channels + first % share.channels + channel] = total;
  }
}

}  // namespace segops::cuda::dice_bce
