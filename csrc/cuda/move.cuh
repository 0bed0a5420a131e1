// Images of which each element is one of another image, or zero: bits are moved, 16 bytes at a time where they lie so.
#pragma once
#include "planes.cuh"
#include "segops/upsample_nearest.h"

namespace segops::cuda {

// Which input an output of one axis is.
struct SourceAxis {
  enum Kind : int32_t { kNearest, kSpread, kPicked };
  Kind kind;
  NearestAxis nearest;
  unsigned scale;

  // Or -1: a zero.
  __device__ __forceinline__ int operator()(int i) const {
    const unsigned at = static_cast<unsigned>(i);
    switch (kind) {
      case kNearest: return static_cast<int>(nearest_source(nearest, i));
      case kSpread: return at % scale == 0 ? static_cast<int>(at / scale) : -1;
      default: return static_cast<int>(at * scale);
    }
  }
};

struct Move {
  ConstPlanes input;
  Planes output;
  SourceAxis vertical, horizontal;
  bool input_fits;  // vectors of 16 bytes in the input
};

constexpr int kMostMovedRows = 32;  // a lane works out the source of each

// U: unsigned integers of the elements' size. kAcross: a vector is V channels of a pixel, or, with V == 1, one element of
// any layout.
template <class U, int V, bool kAcross>
__device__ __forceinline__ void move_strip(const Move& p, const Tiling& tiling) {
  constexpr int kSources = kAcross ? 1 : V;
  const Place place(tiling, V);
  int own_row = place.row + lane_of_warp();
  if (own_row >= tiling.rows) own_row = tiling.rows - 1;
  const int own_source = p.vertical(own_row), first = kAcross ? place.column : place.column * V;
  const U* const plane = place.begin<const U>(p.input);
  U* to = place.begin<U>(p.output) + place.row * p.output.stride_h + first * p.output.stride_w;

  const int width = static_cast<int>(p.output.width);
  int source[kSources];
  bool side_by_side = !kAcross && p.input_fits;
#pragma unroll
  for (int v = 0; v < kSources; ++v) {
    source[v] = p.horizontal(first + v < width ? first + v : width - 1);
    side_by_side &= source[v] == source[0] + v;
  }
  side_by_side &= source[0] % V == 0;
  const bool whole = kAcross || first + V <= width;

  U value[V] = {};
  int held = -2;
  for (int r = 0; r < place.rows; ++r, to += p.output.stride_h) {
    const int row = device::shuffle(own_source, r);
    if (!place.active) continue;
    if (row != held) {
      held = row;
      const U* const from = plane + row * p.input.stride_h;
      if (row < 0 || (kAcross && source[0] < 0)) {
#pragma unroll
        for (int v = 0; v < V; ++v) value[v] = 0;
      } else if constexpr (kAcross) {
        load_vector(from + source[0] * p.input.stride_w, value);
      } else if (side_by_side) {
        load_vector(from + source[0], value);
      } else {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (v > 0 && source[v] == source[v - 1])
            value[v] = value[v - 1];
          else
            value[v] = source[v] < 0 ? U(0) : device::load(from + source[v]);
        }
      }
    }
    if (whole) {
      store_vector(to, value);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (first + v < width) to[v] = value[v];
    }
  }
}

// Calls launch(vector, whether across) for the widest vector that the layouts allow, and with it one of move_strip's forms:
// <V, false>, <V, true> or <1, true>.
template <class U, class Launch>
cudaError_t choose_vector(Move& p, const Launch& launch) {
  constexpr int V = kVector<U>;
  const bool planar = is_planar(p.output);
  p.input_fits = vectors_fit(p.input, sizeof(U), is_planar(p.input));
  if (vectors_fit(p.output, sizeof(U), planar)) {
    if (planar && is_planar(p.input)) return launch.template operator()<V, false>(false);
    if (!planar && !is_planar(p.input) && p.input_fits) return launch.template operator()<V, true>(true);
  }
  return launch.template operator()<1, true>(!planar);
}

}  // namespace segops::cuda
