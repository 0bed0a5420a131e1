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

// Calls body(offset in memory, offset in shared memory) for the pieces of 16 bytes of a full tile, dealt out to `threads`.
template <class Body>
__device__ __forceinline__ void for_each_piece(const RowLayout& layout, int thread, int threads, const Body& body) {
  const int pieces = device::kWarp * layout.bytes / 16;
  for (int q = thread; q < pieces; q += threads) {
    int at = q * 16;
    if (layout.stride != layout.bytes) at = q / (layout.bytes / 16) * layout.stride + q % (layout.bytes / 16) * 16;
    body(q * 16, at);
  }
}

// A full tile to shared memory and back. A barrier of those threads must come before `stage`, and between it and reading.
template <class T>
__device__ __forceinline__ void stage(const T* tile, unsigned char* shared, const RowLayout& layout, int thread,
                                      int threads) {
  for_each_piece(layout, thread, threads, [&](int from, int to) {
    device::cp_async_16(shared + to, reinterpret_cast<const unsigned char*>(tile) + from);
  });
  device::cp_async_commit();
  device::cp_async_wait<0>();
}

template <class T>
__device__ __forceinline__ void unstage(T* tile, const unsigned char* shared, const RowLayout& layout, int thread,
                                        int threads) {
  for_each_piece(layout, thread, threads, [&](int to, int from) {
    device::store_16(reinterpret_cast<unsigned char*>(tile) + to, *reinterpret_cast<const uint4*>(shared + from));
  });
}

template <class T, int K>
struct RowTile {
  unsigned char* shared;  // of this warp
  RowLayout layout;

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
    stage(tile, shared, layout, lane_id(), device::kWarp);
    SYNC_WARP();
    if (layout.bytes % 16 != 0) {
      const T* own = reinterpret_cast<const T*>(row());
      held.load_row(classes, true, [&](int k) { return own[k]; });
      return;
    }
    held.load_pieces(reinterpret_cast<const uint4*>(row()), classes);
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
      held.store_pieces(reinterpret_cast<uint4*>(row()), classes);
    }
    SYNC_WARP();
    unstage(tile, shared, layout, lane_id(), device::kWarp);
  }
};

}  // namespace segops::cuda::dice_ce
