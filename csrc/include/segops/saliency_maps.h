// Contract of saliency_maps: what the pixels of each saliency map tell, from which all of its measures follow. CPU only.
#pragma once
#include "segops/types.h"

namespace segops {

constexpr int64_t kSaliencyLevels = 256;
// Distances are exact up to this one, which stands for all larger ones.
constexpr int64_t kSaliencyReach = 255;
constexpr int64_t kSaliencySquares = kSaliencyReach * kSaliencyReach + 1;

// Of one map; doubles throughout, for this is a row of the result. A pair is background, foreground; a block is upper left,
// upper right, lower left, lower right of the foreground's centre.
struct SaliencyObserved {
  double bad;  // 1 where a value is outside [0, 1]: then all else is 0
  double pixels, mean;
  double lost;      // smoothed errors on the foreground
  double weighted;  // all errors, each by the nearness of the foreground
  double above[2];  // pixels at or above the adaptive threshold
  double counts[4][2];
  double total[4][2], square[4][2];  // of the values less the first one of their block
  double first[4];
  double misses[kSaliencyLevels],
      hits[kSaliencyLevels];  // background and foreground pixels of each level, levels descending
};
constexpr int64_t kSaliencyFields = sizeof(SaliencyObserved) / sizeof(double);

struct SaliencyMaps {
  const void* prediction;  // [N, H, W] contiguous: uint8, of which 255 is 1, or floating point
  Dtype prediction_dtype;
  const uint8_t* target;   // [N, H, W] contiguous: 0 is background, all else foreground
  const double* nearness;  // [kSaliencySquares], the weight of an error by its squared distance from the foreground
  int64_t maps, height, width;
  bool normalize;              // values are stretched to [0, 1], but for those of a map of one value
  SaliencyObserved* observed;  // [N]
};

}  // namespace segops
