// Channels last for the kernels that hold all logits of a pixel: a warp's tile of 32 pixels, each a row of C elements.
//
// The tile is contiguous in memory, so it is copied to shared memory 16 bytes a lane and read there by rows; the gradient
// takes the same way back. Rows whose bytes are a multiple of 16 are read 16 at a time and padded so that 8 neighbouring
// rows, which is what the hardware reads at once, begin in different banks; others are read by elements: without conflicts
// where a row is an odd number of words, else two rows share a bank.
#pragma once
#include "dice_ce_loss_tile.cuh"

namespace segops::cuda::dice_ce {

struct RowLayout {
  int bytes;   // of a row in memory
  int stride;  // of a row in shared memory

  SEGOPS_HOST_DEVICE RowLayout(int64_t classes, int64_t element) {
    bytes = static_cast<int>(classes * element);
    stride = bytes % 16 == 0 && bytes / 16 % 2 == 0 ? bytes + 16 : bytes;
  }
  SEGOPS_HOST_DEVICE int tile() const { return device::kWarp * stride; }
};

template <class T, int K>
struct RowTile {
  unsigned char* shared;  // of this warp
  RowLayout layout;

  // Calls body(offset in memory, offset in shared memory) for this lane's pieces of 16 bytes of a full tile.
  template <class Body>
  __device__ __forceinline__ void for_each_piece(const Body& body) const {
    const int pieces = device::kWarp * layout.bytes / 16;
    for (int q = lane_id(); q < pieces; q += device::kWarp) {
      int at = q * 16;
      if (layout.stride != layout.bytes) at = q / (layout.bytes / 16) * layout.stride + q % (layout.bytes / 16) * 16;
      body(q * 16, at);
    }
  }

  __device__ __forceinline__ unsigned char* row() const { return shared + lane_id() * layout.stride; }

  // `tile`: the first element of the tile's first pixel; `full`: all 32 pixels are there and pieces may be read.
  __device__ __forceinline__ void load(Held<T, K, 1>& held, const T* tile, int64_t stride_s, int classes, int count,
                                       bool full) const {
    if (!full) {
      const T* own = tile + lane_id() * stride_s;
      held.load_row(classes, lane_id() < count, [&](int k) { return device::load(own + k); });
      return;
    }
    SYNC_WARP();  // the tile before has left
    for_each_piece(
        [&](int from, int to) { device::cp_async_16(shared + to, reinterpret_cast<const unsigned char*>(tile) + from); });
    device::cp_async_commit();
    device::cp_async_wait<0>();
    SYNC_WARP();
    if (layout.bytes % 16 != 0) {
      const T* own = reinterpret_cast<const T*>(row());
      held.load_row(classes, true, [&](int k) { return own[k]; });
      return;
    }
    constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
    const uint4* own = reinterpret_cast<const uint4*>(row());
#pragma unroll
    for (int k = 0; k < K; k += kPiece) {
      if (k >= classes) break;
      const uint4 v = own[k / kPiece];
      T piece[kPiece];
      copy_bits(piece, &v, 16);
#pragma unroll
      for (int j = 0; j < kPiece; ++j) held.x[k + j].set(0, widen<AccumulatorOf<T>>(piece[j]));
    }
    held.fill_rest(classes);
  }

  // Writes what is in `held`.
  __device__ __forceinline__ void store(const Held<T, K, 1>& held, T* tile, int64_t stride_s, int classes, int count,
                                        bool full) const {
    if (!full) {
      T* own = tile + lane_id() * stride_s;
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (k < classes && lane_id() < count) own[k] = narrow<T>(held.x[k].get(0));
      return;
    }
    if (layout.bytes % 16 != 0) {
      T* own = reinterpret_cast<T*>(row());
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (k < classes) own[k] = narrow<T>(held.x[k].get(0));
    } else {
      constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
      uint4* own = reinterpret_cast<uint4*>(row());
#pragma unroll
      for (int k = 0; k < K; k += kPiece) {
        if (k >= classes) break;
        T piece[kPiece];
#pragma unroll
        for (int j = 0; j < kPiece; ++j) piece[j] = narrow<T>(held.x[k + j].get(0));
        copy_bits(own + k / kPiece, piece, 16);
      }
    }
    SYNC_WARP();
    for_each_piece([&](int to, int from) {
      device::store_16(reinterpret_cast<unsigned char*>(tile) + to, *reinterpret_cast<const uint4*>(shared + from));
    });
  }
};

}  // namespace segops::cuda::dice_ce
