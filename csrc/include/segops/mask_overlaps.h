// Contract of mask_overlaps: pixels that pairs of masks have in common. CPU only.
#pragma once
#include "segops/types.h"

namespace segops {

struct MaskOverlaps {
  const uint8_t* detections;                      // [K, S] contiguous: a pixel is in the mask where its byte is not 0
  const uint8_t* objects;                         // [M, S] contiguous, the same
  int64_t detection_count, object_count, pixels;  // K, M, S
  double* both;                                   // [K, M]
  double* detection_areas;                        // [K]
  double* object_areas;                           // [M]
};

}  // namespace segops
