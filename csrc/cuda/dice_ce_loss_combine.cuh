// How the forward kernels of dice_ce_loss and dice_bce_loss leave the sums of their blocks, and what adds them up.
#pragma once
#include "reduce.cuh"

namespace segops::cuda::dice_ce {

// A chunk is a part of one image. It may be several blocks, which share out the channels.
struct Partial {
  double* overlap;  // [N, chunks of an image, 3, C]
  double* ce;       // [blocks, 2]
  BadData* bad;     // [blocks]

  static int64_t bytes(int64_t chunks, int64_t classes, int64_t blocks) {
    return chunks * 3 * classes * 8 + blocks * (16 + static_cast<int64_t>(sizeof(BadData)));
  }
  // scratch: memory of that many bytes, aligned to 8.
  Partial(void* scratch, int64_t blocks)
      : overlap(reinterpret_cast<double*>(static_cast<BadData*>(scratch) + blocks) + 2 * blocks),
        ce(reinterpret_cast<double*>(static_cast<BadData*>(scratch) + blocks)),
        bad(static_cast<BadData*>(scratch)) {}
};

struct Totals {
  int64_t batch, classes;
  double* overlap;  // [N, 3, C] or null
  double* ce;       // [2]
  BadData* bad;
};

// Adds up the chunks, so many of each image, in order.
cudaError_t combine(const Totals& totals, int64_t chunks_of_image, int64_t blocks, const Partial& partial,
                    cudaStream_t stream);

}  // namespace segops::cuda::dice_ce
