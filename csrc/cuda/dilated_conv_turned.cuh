// Products of tiles whose summed dimension is the outer one, as the gradient of the weight has them: rows and columns are
// channels, side by side in a pixel, and the sum is over pixels. By one block of four warps, each with 64 x 32 results.
#pragma once
#include "dilated_conv_tile.cuh"

namespace segops::cuda {

constexpr int kTurnedRows = 64, kTurnedColumns = 128;

// Where the chunks of a stage lie: kPixels lines of 64 and of 128 channels. Chunks are shuffled so that eight pixels at one
// chunk, four pixels at two (float), and what eight threads copy at once meet no bank twice.
template <class T>
struct Turned {
  static constexpr int kPixels = 64 / static_cast<int>(sizeof(T)), kLanes = kGemmThreads / kPixels;
  static constexpr int kAlternate = kLanes < 8 ? 1 : 0;  // two pixels' threads copy at once: the second begins further on
  static constexpr int kRowsBytes = kPixels * kTurnedRows * static_cast<int>(sizeof(T));
  static_assert(kPixels * (kTurnedRows + kTurnedColumns) * static_cast<int>(sizeof(T)) == kStageBytes);

  static __device__ __forceinline__ int shuffled(int pixel, int chunk) {
    return kChunkBytes * (chunk ^ ((pixel << 1 & 6) | (pixel >> 2 & 1)));
  }
  static __device__ __forceinline__ int row_chunk(int pixel, int chunk) {
    return pixel * kTurnedRows * static_cast<int>(sizeof(T)) + shuffled(pixel, chunk);
  }
  static __device__ __forceinline__ int column_chunk(int pixel, int chunk) {
    return pixel * kTurnedColumns * static_cast<int>(sizeof(T)) + shuffled(pixel, chunk);
  }
};

struct TurnedWarp {
  int lane, column;
  __device__ __forceinline__ TurnedWarp()
      : lane(lane_of_warp()), column(static_cast<int>(threadIdx.x) / device::kWarp * 32) {}
};

// The results of fragments of 16 x 8.
__device__ __forceinline__ void store_fragments(const Sums& sums, float* to, int64_t row_length) {
  const TurnedWarp warp;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float (&d)[4] = sums[4 * i + j];
      float* const at = to + (i * 16 + warp.lane / 4) * row_length + warp.column + j * 8 + warp.lane % 4 * 2;
      *reinterpret_cast<float2*>(at) = make_float2(d[0], d[1]);
      *reinterpret_cast<float2*>(at + 8 * row_length) = make_float2(d[2], d[3]);
    }
  }
}

// 16-bit numbers: ldmatrix turns them.
template <class E>
struct TurnedMatrix {
  using T = E;
  static __device__ __forceinline__ void add(Sums& sums, const unsigned char* rows, const unsigned char* columns) {
    using At = Turned<T>;
    const TurnedWarp warp;
    const int lane = warp.lane;
#pragma unroll
    for (int pixel = 0; pixel < At::kPixels; pixel += 16) {
      uint32_t b[4][2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t pair[4];
        device::ldmatrix_x4_trans(
            pair, columns + At::column_chunk(pixel + lane / 8 % 2 * 8 + lane % 8, warp.column / 8 + 2 * j + lane / 16));
        b[2 * j][0] = pair[0], b[2 * j][1] = pair[1], b[2 * j + 1][0] = pair[2], b[2 * j + 1][1] = pair[3];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[4];
        device::ldmatrix_x4_trans(a, rows + At::row_chunk(pixel + lane / 16 * 8 + lane % 8, 2 * i + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply(E{}, sums[4 * i + j], a, b[j]);
      }
    }
  }
  static __device__ __forceinline__ void store(const Sums& sums, float* to, int64_t row_length) {
    store_fragments(sums, to, row_length);
  }
};

// Float as TF32: ldmatrix turns no 32-bit numbers.
struct TurnedTf32 {
  using T = float;
  static __device__ __forceinline__ void add(Sums& sums, const unsigned char* rows, const unsigned char* columns) {
    using At = Turned<T>;
    const TurnedWarp warp;
    const int g = warp.lane / 4, t = warp.lane % 4;
    const auto number = [](const unsigned char* line, int channel) {
      return *reinterpret_cast<const uint32_t*>(line + channel % 4 * 4);
    };
#pragma unroll 1  // else too many addresses are held
    for (int pixel = 0; pixel < At::kPixels; pixel += 8) {
      uint32_t b[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int channel = warp.column + 8 * j + g;
#pragma unroll
        for (int k = 0; k < 2; ++k) b[j][k] = number(columns + At::column_chunk(pixel + t + 4 * k, channel / 4), channel);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int channel = 16 * i + g + k % 2 * 8;
          a[k] = number(rows + At::row_chunk(pixel + t + k / 2 * 4, channel / 4), channel);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply(0.f, sums[4 * i + j], a, b[j]);
      }
    }
  }
  static __device__ __forceinline__ void store(const Sums& sums, float* to, int64_t row_length) {
    store_fragments(sums, to, row_length);
  }
};

// Float, exactly: a thread has two by two squares of 4 x 4.
struct TurnedScalar {
  using T = float;
  static __device__ __forceinline__ void add(Sums& sums, const unsigned char* rows, const unsigned char* columns) {
    using At = Turned<T>;
    const TurnedWarp warp;
    const int row = warp.lane / 4, column = warp.column / 4 + warp.lane % 4;
#pragma unroll 4
    for (int pixel = 0; pixel < At::kPixels; ++pixel) {
      float a[8], b[8];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 of_row = *reinterpret_cast<const float4*>(rows + At::row_chunk(pixel, row + 8 * i));
        const float4 of_column = *reinterpret_cast<const float4*>(columns + At::column_chunk(pixel, column + 4 * i));
        a[4 * i] = of_row.x, a[4 * i + 1] = of_row.y, a[4 * i + 2] = of_row.z, a[4 * i + 3] = of_row.w;
        b[4 * i] = of_column.x, b[4 * i + 1] = of_column.y, b[4 * i + 2] = of_column.z, b[4 * i + 3] = of_column.w;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[2 * i + j / 4][j % 4] += a[i] * b[j];
      }
    }
  }
  static __device__ __forceinline__ void store(const Sums& sums, float* to, int64_t row_length) {
    const TurnedWarp warp;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float (&d)[4] = sums[2 * i + j];
        float* const at =
            to + (warp.lane / 4 * 4 + i / 4 * 32 + i % 4) * row_length + warp.column + warp.lane % 4 * 4 + j * 16;
        *reinterpret_cast<float4*>(at) = make_float4(d[0], d[1], d[2], d[3]);
      }
    }
  }
};

}  // namespace segops::cuda
