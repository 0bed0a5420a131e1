// Products of tiles in shared memory, by one block of four warps, each with 64 x 32 of the results.
//
// A tile of the sum is kRows rows (pixels) and kColumns columns (channels) of 64 bytes each: 4 chunks of 16 bytes along
// the summed dimension. Chunks are shuffled so that eight rows at one chunk, and two rows at all chunks, meet no bank twice.
#pragma once
#include "planes.cuh"

namespace segops::cuda {

constexpr int kGemmThreads = 128, kRows = 128, kColumns = 64, kStages = 3;
constexpr int kChunks = 4, kChunkBytes = 16, kRowBytes = kChunks * kChunkBytes;
constexpr int kStageBytes = (kRows + kColumns) * kRowBytes, kRingBytes = kStages * kStageBytes;

__device__ __forceinline__ int chunk_at(int row, int chunk) {
  return row * kRowBytes + kChunkBytes * (chunk ^ (row >> 1 & (kChunks - 1)));
}

// What a thread has of the results; which, its Product knows.
using Sums = float[16][4];

// d += a b of 16 x 8 results and 32 bytes of each row.
__device__ __forceinline__ void multiply(__nv_bfloat16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  device::mma_bf16_16x8x16(d, a, b);
}
__device__ __forceinline__ void multiply(__half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  device::mma_f16_16x8x16(d, a, b);
}
__device__ __forceinline__ void multiply(float, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  device::mma_tf32_16x8x8(d, a, b);
}

struct WarpPlace {
  int lane, row, column;  // the first of the warp's results
  __device__ __forceinline__ WarpPlace() {
    const int warp = static_cast<int>(threadIdx.x) / device::kWarp;
    lane = lane_of_warp();
    row = warp / 2 * 64;
    column = warp % 2 * 32;
  }
};

// Tensor cores: 16-bit numbers, and float as TF32. A 16-byte row of ldmatrix is 8 numbers of 16 bits or 4 of 32, and both
// kinds of fragments have the same bytes of it.
template <class E>
struct Matrix {
  using T = E;
  static constexpr int kBlocks = 3;                            // of a multiprocessor, for which there are registers
  static constexpr int kPixelPitch = 72, kChannelPitch = 132;  // of the staged results, so that no banks meet

  static __device__ __forceinline__ void add(Sums& sums, const unsigned char* rows, const unsigned char* columns) {
    const WarpPlace warp;
    const int lane = warp.lane;
#pragma unroll
    for (int half = 0; half < kChunks; half += 2) {
      uint32_t b[4][2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t pair[4];
        const int column = warp.column + j * 16 + lane / 16 * 8 + lane % 8;
        device::ldmatrix_x4(pair, columns + chunk_at(column, half + lane / 8 % 2));
        b[2 * j][0] = pair[0], b[2 * j][1] = pair[1], b[2 * j + 1][0] = pair[2], b[2 * j + 1][1] = pair[3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[4];
        device::ldmatrix_x4(a, rows + chunk_at(warp.row + i * 16 + lane % 16, half + lane / 16));
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply(E{}, sums[4 * i + j], a, b[j]);
      }
    }
  }

  // kPlanar: rows of a channel's pixels, else of a pixel's channels.
  template <bool kPlanar>
  static __device__ __forceinline__ void put(const Sums& sums, float* stage) {
    const WarpPlace warp;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = warp.row + i * 16 + warp.lane / 4, column = warp.column + j * 8 + warp.lane % 4 * 2;
        const float (&d)[4] = sums[4 * i + j];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          if constexpr (kPlanar) {
            stage[column * kChannelPitch + row + 8 * k] = d[2 * k];
            stage[(column + 1) * kChannelPitch + row + 8 * k] = d[2 * k + 1];
          } else {
            *reinterpret_cast<float2*>(stage + (row + 8 * k) * kPixelPitch + column) = make_float2(d[2 * k], d[2 * k + 1]);
          }
        }
      }
    }
  }
};

// Float, exactly: a thread has rows and columns 8 and 4 apart.
struct Scalar {
  using T = float;
  static constexpr int kBlocks = 2;
  static constexpr int kPixelPitch = 68, kChannelPitch = 136;

  static __device__ __forceinline__ void add(Sums& sums, const unsigned char* rows, const unsigned char* columns) {
    const WarpPlace warp;
    const int row = warp.row + warp.lane / 4, column = warp.column + warp.lane % 4;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      float b[8][4];
#pragma unroll
      for (int j = 0; j < 8; ++j) copy_chunk(b[j], columns + chunk_at(column + 4 * j, chunk));
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float a[4];
        copy_chunk(a, rows + chunk_at(row + 8 * i, chunk));
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[2 * i + j / 4][j % 4] += a[k] * b[j][k];
        }
      }
    }
  }

  template <bool kPlanar>
  static __device__ __forceinline__ void put(const Sums& sums, float* stage) {
    const WarpPlace warp;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int row = warp.row + warp.lane / 4 + 8 * i, column = warp.column + warp.lane % 4 + 4 * j;
        stage[kPlanar ? column * kChannelPitch + row : row * kPixelPitch + column] = sums[2 * i + j / 4][j % 4];
      }
    }
  }

 private:
  static __device__ __forceinline__ void copy_chunk(float (&to)[4], const unsigned char* from) {
    const float4 piece = *reinterpret_cast<const float4*>(from);
    to[0] = piece.x, to[1] = piece.y, to[2] = piece.z, to[3] = piece.w;
  }
};

// V staged results side by side. Of 8, every other four lanes begin with the second half: else lanes would meet in banks.
template <int V>
__device__ __forceinline__ void read_staged(const float* stage, float (&v)[V]) {
  static_assert(V == 4 || V == 8);
  const int first = V == 8 && (threadIdx.x >> 2 & 1) ? 4 : 0;
  float4 pieces[V / 4];
#pragma unroll
  for (int i = 0; i < V / 4; ++i) pieces[i] = *reinterpret_cast<const float4*>(stage + (first ^ 4 * i));
#pragma unroll
  for (int i = 0; i < V / 4; ++i) {
    const float4 piece = V == 8 && first ? pieces[V / 4 - 1 - i] : pieces[i];
    v[4 * i] = piece.x, v[4 * i + 1] = piece.y, v[4 * i + 2] = piece.z, v[4 * i + 3] = piece.w;
  }
}

__device__ __forceinline__ void put_zeros(unsigned char* chunk) {
  *reinterpret_cast<uint4*>(chunk) = make_uint4(0, 0, 0, 0);
}

}  // namespace segops::cuda
