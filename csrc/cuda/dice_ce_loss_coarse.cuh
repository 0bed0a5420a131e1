// What forward and backward share for coarse logits.
#pragma once
#include "coarse_window.cuh"
#include "dice_ce_loss_gradient.cuh"
#include "dice_ce_loss_sweep.cuh"
#include "segops/dice_ce_loss_coarse.h"

namespace segops::cuda::dice_ce {

constexpr int kMostWindow = 72 * 1024;

// One fine pixel's label and weight; kIgnored where ignored or bad, which `bad` is told.
template <class A>
struct FinePixel {
  int32_t label = kIgnored;
  A weight = 0;

  __device__ __forceinline__ FinePixel() {}
  __device__ __forceinline__ FinePixel(const DiceCeLossInputs& in, int64_t position, BadData& bad) {
    const int64_t value = label_at(in, position);
    if (value == in.ignore_index) return;
    if (value < 0 || value >= in.classes) {
      bad = merge(bad, BadData{1, position, value});
      return;
    }
    label = static_cast<int32_t>(value);
    weight = in.pixel_weight ? device::load(static_cast<const A*>(in.pixel_weight) + position) : A(1);
  }
};

}  // namespace segops::cuda::dice_ce
