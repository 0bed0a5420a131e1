// What the kernels of dice_bce_loss for coarse logits share: labels and weights of fine pixels.
#pragma once
#include "dice_bce_loss_element.cuh"

namespace segops::cuda::dice_bce {

constexpr int kSlab = 8;  // channels of a block, at most

// Channels of a block: of a pixel they share its sectors; of planes each has its blocks, which have the fewest borders so.
inline int slab_of(const ConstPlanes& logits) {
  return static_cast<int>(is_planar(logits) || logits.channels < 1 ? 1 : logits.channels < kSlab ? logits.channels : kSlab);
}

// Some fine pixels of one channel, below each other.
template <class A, int V>
struct FinePixels {
  A label[V], weight[V];

  // Those that are not inside, for i from 0 on: a pixel at at(i) of the image's H * W. note(i, value) is told of bad labels.
  template <class Inside, class At, class Note>
  __device__ __forceinline__ FinePixels(const DiceBceLossInputs& in, int64_t image, int channel, const Inside& inside,
                                        const At& at, const Note& note) {
    const int64_t weights = image * in.pixel_weight.stride_n + channel * in.pixel_weight.stride_c;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      weight[i] = 1;
      if (in.pixel_weight.data && inside(i))
        weight[i] = device::load(static_cast<const A*>(in.pixel_weight.data) + weights + at(i));
    }
    as_label(in.target_dtype, [&]<class L>(L) {
      const L* const labels =
          static_cast<const L*>(in.target.data) + image * in.target.stride_n + channel * in.target.stride_c;
      L raw[V];
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (inside(i)) raw[i] = device::load(labels + at(i));
#pragma unroll
      for (int i = 0; i < V; ++i)
        label[i] = inside(i) ? read_label<A>(in, raw[i], [&](int64_t value) { note(i, value); }) : A(NAN);
    });
  }
};

}  // namespace segops::cuda::dice_bce
