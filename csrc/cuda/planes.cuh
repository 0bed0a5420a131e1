// How kernels on images [N, C, H, W] share out their work, and how they read and write it.
//
// A thread owns a vector of elements, side by side in memory: of one row (planar) or of the channels of one pixel (channels
// last). It walks down a strip of rows with it, so that what a column needs is worked out once, and what neighbouring rows
// share is loaded once. All threads of a block walk down the same rows: a lane of each warp works out one of them.
#pragma once
#include "common.cuh"
#include "segops/planes.h"

namespace segops::cuda {

// Kernels say that one or two blocks on a multiprocessor are enough: else ptxas spills to have room for more.
constexpr int kPlaneThreads = 256;

template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // elements of a 16-byte access

__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % device::kWarp; }

// V neighbouring elements with one access: of 16 bytes or more, or what a vector of a smaller type comes to.
template <class T, int V>
__device__ __forceinline__ void load_vector(const T* global, T (&v)[V]) {
  constexpr int kBytes = V * static_cast<int>(sizeof(T));
  if constexpr (V == 1) {
    v[0] = device::load(global);
  } else if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 piece = device::load_16(reinterpret_cast<const char*>(global) + i * 16);
      copy_bits(reinterpret_cast<char*>(v) + i * 16, &piece, 16);
    }
  } else if constexpr (kBytes == 8) {
    const uint64_t piece = device::load(reinterpret_cast<const uint64_t*>(global));
    copy_bits(v, &piece, 8);
  } else if constexpr (kBytes == 4) {
    const uint32_t piece = device::load(reinterpret_cast<const uint32_t*>(global));
    copy_bits(v, &piece, 4);
  } else {
    static_assert(kBytes == 2);
    const uint16_t piece = device::load(reinterpret_cast<const uint16_t*>(global));
    copy_bits(v, &piece, 2);
  }
}

// V neighbouring elements with one access: of 16 bytes, or what a vector of a smaller type comes to.
template <class T, int V>
__device__ __forceinline__ void store_vector(T* global, const T (&v)[V]) {
  constexpr int kBytes = V * static_cast<int>(sizeof(T));
  if constexpr (V == 1) {
    *global = v[0];
  } else if constexpr (kBytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      uint4 piece;
      copy_bits(&piece, reinterpret_cast<const char*>(v) + i * 16, 16);
      device::store_16(reinterpret_cast<char*>(global) + i * 16, piece);
    }
  } else if constexpr (kBytes == 8) {
    uint2 piece;
    copy_bits(&piece, v, 8);
    *reinterpret_cast<uint2*>(global) = piece;
  } else if constexpr (kBytes == 4) {
    uint32_t piece;
    copy_bits(&piece, v, 4);
    *reinterpret_cast<uint32_t*>(global) = piece;
  } else {
    static_assert(kBytes == 2);
    uint16_t piece;
    copy_bits(&piece, v, 2);
    *reinterpret_cast<uint16_t*>(global) = piece;
  }
}

template <class Data>
bool is_planar(const PlanesOf<Data>& planes) {
  return planes.stride_w == 1;
}

// Whether vectors of `bytes` are whole and aligned in every row (planar), or pixel (channels last).
template <class Data>
bool vectors_fit(const PlanesOf<Data>& planes, int64_t element, bool planar, int64_t bytes = 16) {
  auto whole = [&](int64_t extent, int64_t stride) { return extent <= 1 || stride * element % bytes == 0; };
  if (reinterpret_cast<uintptr_t>(planes.data) % static_cast<uintptr_t>(bytes) != 0) return false;
  if (!whole(planes.batch, planes.stride_n) || !whole(planes.height, planes.stride_h)) return false;
  if (planar) return planes.stride_w == 1 && whole(planes.channels, planes.stride_c);
  return planes.stride_c == 1 && whole(planes.width, planes.stride_w) && planes.channels * element % bytes == 0;
}

// The cut of the images into vectors, strips and blocks, by shape alone.
struct Tiling {
  bool across;      // vectors lie across the channels of a pixel, and a plane is an image; else a plane is one channel of it
  int channels;     // of an image
  int columns;      // of a row; in vectors where they lie along it
  int inner;        // vectors of a pixel
  int rows, strip;  // rows, and how many of them a thread walks down
  int span, folded;  // threads side by side in a row, and planes side by side in a block
  int tiles, strips;
  int64_t planes, blocks;

  template <class Data>
  Tiling(const PlanesOf<Data>& of, int vector, bool across_, int most_rows) : across(across_) {
    channels = static_cast<int>(of.channels);
    columns = static_cast<int>(across ? of.width : (of.width + vector - 1) / vector);
    inner = across ? static_cast<int>(of.channels / vector) : 1;
    planes = across ? of.batch : of.batch * of.channels;
    rows = static_cast<int>(of.height);
    const int64_t side_by_side = static_cast<int64_t>(columns) * inner;
    span = static_cast<int>(side_by_side < kPlaneThreads ? side_by_side : kPlaneThreads);
    if (span < 1) span = 1;
    tiles = static_cast<int>((side_by_side + span - 1) / span);
    cut(most_rows);
  }

  bool fits() const {
    return blocks <= INT32_MAX && planes <= INT32_MAX && static_cast<int64_t>(columns) * inner <= INT32_MAX;
  }
  unsigned grid() const { return static_cast<unsigned>(blocks); }
  int threads() const { return (span * folded + device::kWarp - 1) / device::kWarp * device::kWarp; }

  // Long strips share more between rows; short ones spread a small image over more multiprocessors.
  void cut(int most_rows) {
    constexpr int64_t kEnough = 1056;  // eight blocks for each multiprocessor of the largest devices
    folded = kPlaneThreads / span;
    if (folded > planes) folded = planes > 0 ? static_cast<int>(planes) : 1;
    for (strip = most_rows;; strip = (strip + 1) / 2) {
      strips = (rows + strip - 1) / strip;
      blocks = static_cast<int64_t>(tiles) * strips * ((planes + folded - 1) / folded);
      if (blocks >= kEnough || strip <= 4) break;
    }
  }
};

// launch(), if there is anything to do.
template <class Launch>
cudaError_t over(const Tiling& tiling, const Launch& launch) {
  if (!tiling.fits()) return cudaErrorInvalidValue;
  return tiling.blocks == 0 ? cudaSuccess : launch();
}

// What one thread has of a tiling.
struct Place {
  int tile;
  int row, rows;  // the first of the strip, and how many
  int slot;       // which of the block's planes
  int column;     // in vectors where they lie along the row
  int channel;    // the first
  int64_t image;
  bool active;

  __device__ __forceinline__ Place(const Tiling& of, int vector) {
    const unsigned strips = blockIdx.x / static_cast<unsigned>(of.tiles);
    const unsigned group = strips / static_cast<unsigned>(of.strips);
    tile = static_cast<int>(blockIdx.x - strips * static_cast<unsigned>(of.tiles));
    row = static_cast<int>(strips - group * static_cast<unsigned>(of.strips)) * of.strip;
    rows = of.rows - row < of.strip ? of.rows - row : of.strip;
    slot = static_cast<int>(threadIdx.x / static_cast<unsigned>(of.span));
    const unsigned at = static_cast<unsigned>(tile * of.span) + threadIdx.x % static_cast<unsigned>(of.span);
    column = static_cast<int>(at / static_cast<unsigned>(of.inner));
    const int64_t plane = static_cast<int64_t>(group) * of.folded + slot;
    active = slot < of.folded && plane < of.planes && column < of.columns;
    if (of.across) {
      image = plane;
      channel = static_cast<int>(at % static_cast<unsigned>(of.inner)) * vector;
    } else {
      // 32 bits: a division of 64 is a subroutine. `fits` has seen to it that planes are that few.
      image = static_cast<int64_t>(static_cast<unsigned>(plane) / static_cast<unsigned>(of.channels));
      channel = static_cast<int>(static_cast<unsigned>(plane) % static_cast<unsigned>(of.channels));
    }
  }

  // The first element of the thread's plane, or of its channels in the image.
  template <class T, class Data>
  __device__ __forceinline__ T* begin(const PlanesOf<Data>& planes) const {
    return static_cast<T*>(planes.data) + image * planes.stride_n + channel * planes.stride_c;
  }
};

}  // namespace segops::cuda
