// dice_bce_loss of coarse logits, forward: the sums of dice_bce_loss.cu from logits that are interpolated where they are
// used.
//
// A block has a tile of fine pixels of a slab of channels, and copies the coarse cells that they read to shared memory. A
// warp has some rows of the tile, of every channel: what interpolates them is worked out once.
#include "coarse_window.cuh"
#include "dice_bce_loss_fine.cuh"
#include "dice_bce_loss_sums.cuh"

namespace segops::cuda::dice_bce {
namespace {

using dice_ce::Partial;

constexpr int kBand = 4;  // rows of a warp
constexpr int kTileColumns = 128;

// By shape alone, and so are the sums.
struct CoarsePlan {
  int rows, down, across;  // of a tile; tiles
  int slab, slabs;         // channels
  int window, bytes;       // of shared memory, which begins with the warps' sums
  static constexpr int64_t kEnough = 264, kMostShared = 45 * 1024;

  SEGOPS_HOST_DEVICE int64_t tiles() const { return static_cast<int64_t>(down) * across; }
  int64_t blocks(int64_t batch) const { return batch * slabs * tiles(); }
  SEGOPS_HOST_DEVICE int warps() const { return rows / kBand; }

  explicit CoarsePlan(const DiceBceLossCoarseStatistics& p) {
    const int64_t channels = p.loss.in.channels, element = bytes_of(p.loss.in.logits_dtype);
    across = static_cast<int>((p.coarse.horizontal.out + kTileColumns - 1) / kTileColumns);
    for (rows = device::kWarp;; rows /= 2) {
      down = static_cast<int>((p.coarse.vertical.out + rows - 1) / rows);
      const int64_t cells =
          pitch_of(most_read(p.coarse.vertical, rows) * most_read(p.coarse.horizontal, kTileColumns), element) * element;
      // No axis shrinks, so that one channel fits.
      for (slab = slab_of(p.coarse.planes);; slab /= 2) {
        Parts parts;
        parts.take(slab * 3 * warps() * 8);
        window = parts.take(slab * cells);
        bytes = parts.bytes;
        if (bytes <= kMostShared || slab == 1) break;
      }
      slabs = static_cast<int>((channels + slab - 1) / slab);
      if (blocks(p.loss.in.batch) >= kEnough || rows == 4 * kBand) break;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kCoarseThreads, sizeof(T) == 8 ? 1 : 2)
    dice_bce_loss_coarse_forward_kernel(DiceBceLossCoarseStatistics p, CoarsePlan plan, Partial partial) {
  using A = AccumulatorOf<T>;
  const DiceBceLossInputs& in = p.loss.in;
  const int lane = lane_of_warp(), warp = static_cast<int>(threadIdx.x) / device::kWarp, warps = plan.warps();
  const int height = static_cast<int>(p.coarse.vertical.out), width = static_cast<int>(p.coarse.horizontal.out);
  const int last_row = static_cast<int>(p.coarse.vertical.in) - 1,
            last_column = static_cast<int>(p.coarse.horizontal.in) - 1;
  BlockIndex index;
  const int tile_across = index.next(plan.across), tile_down = index.next(plan.down);
  const int first_channel = index.next(plan.slabs) * plan.slab;
  const int64_t image = index.rest, tile = static_cast<int64_t>(tile_down) * plan.across + tile_across;
  const int left = tile_across * kTileColumns, top = tile_down * plan.rows;
  const int rows = height - top < plan.rows ? height - top : plan.rows;
  const int columns = width - left < kTileColumns ? width - left : kTileColumns;
  const int rest = static_cast<int>(in.channels) - first_channel, channels = rest < plan.slab ? rest : plan.slab;

  DYNAMIC_SHARED(unsigned char, shared);
  double* const sums = reinterpret_cast<double*>(shared);  // [channel][I, P, T][warp]
  const CoarseWindow<T, true> window(p.coarse.planes, image, first_channel, channels,
                                     Cells::read_by(p.coarse.vertical, p.coarse.horizontal, top, rows, left, columns),
                                     reinterpret_cast<T*>(shared + plan.window));

  // What lies beyond the tile is read like its last pixel, and does not count. A lane works out a row of the tile.
  const LinearTap own = linear_tap(p.coarse.vertical, top + (lane < rows ? lane : rows - 1));
  int low[kBand];
  A down[kBand];
#pragma unroll
  for (int v = 0; v < kBand; ++v) {
    low[v] = device::shuffle(static_cast<int>(own.low), warp * kBand + v);
    down[v] = device::shuffle(static_cast<A>(own.weight), warp * kBand + v);
  }
  SHARED_ARRAY(int, column_low, kTileColumns);
  SHARED_ARRAY(A, column_weight, kTileColumns);
  for (int x = static_cast<int>(threadIdx.x); x < kTileColumns; x += warps * device::kWarp) {
    const LinearTap tap = linear_tap(p.coarse.horizontal, left + (x < columns ? x : columns - 1));
    column_low[x] = static_cast<int>(tap.low);
    column_weight[x] = static_cast<A>(tap.weight);
  }
  const Constants<T> constant(in);
  double loss_sum = 0, weight_sum = 0;
  BadOfThread bad;
  SYNC_THREADS();

  for (int c = 0; c < channels; ++c) {
    const int channel = first_channel + c;
    const A positive = in.pos_weight ? static_cast<A>(device::load(in.pos_weight + channel)) : A(1);
    const int64_t map = image * p.loss.map_stride_n + channel * p.loss.map_stride_c;
    A totals[4] = {}, loss_of_channel = 0, weight_of_channel = 0;  // I, P, T and nothing
    for (int begin = 0; begin < columns; begin += device::kWarp) {
      const bool in_row = begin + lane < columns;
      const int x = left + begin + lane, y = top + warp * kBand, left_cell = column_low[begin + lane];
      const FineColumn<T, true> column{left_cell, left_cell < last_column ? left_cell + 1 : left_cell,
                                       column_weight[begin + lane]};
      const auto inside = [&](int v) { return in_row && warp * kBand + v < rows; };
      const auto at = [&](int v) { return static_cast<int64_t>(y + v) * width + x; };
      const FinePixels<A, kBand> pixels(in, image, channel, inside, at, [&](int v, int64_t value) {
        bad.record((image * in.channels + channel) * in.pixels + at(v), value);
      });
      FineRows<T, true> fine;
#pragma unroll
      for (int v = 0; v < kBand; ++v) {
        const A logit = fine.at(window, column, c, low[v], last_row, down[v]);
        A loss = 0;
        if (counts(pixels.label[v])) {
          const A t = pixels.label[v];
          const Sigmoid<T> of(logit);
          loss = pixels.weight[v] * constant.loss(of, t, positive);
          loss_of_channel += loss;
          weight_of_channel += pixels.weight[v];
          totals[0] += of.prob * t;
          totals[1] += constant.squared ? of.prob * of.prob : of.prob;
          totals[2] += constant.squared ? t * t : t;
        }
        if (p.loss.bce_map && inside(v)) static_cast<A*>(p.loss.bce_map)[map + at(v)] = loss;
      }
    }
    loss_sum += static_cast<double>(loss_of_channel);
    weight_sum += static_cast<double>(weight_of_channel);
    const A total = warp_sums(totals);
    const int which = lane / (device::kWarp / 4);
    if (lane % (device::kWarp / 4) == 0 && which < 3) sums[(c * 3 + which) * warps + warp] = static_cast<double>(total);
  }

  // Its barrier is that of `sums`, too.
  finish_cross_entropy<kCoarseThreads>(loss_sum, weight_sum, bad.all(), partial);
  if (!p.loss.overlap) return;
  double* const out = partial.overlap + (image * plan.tiles() + tile) * 3 * in.channels + first_channel;
  for (int i = static_cast<int>(threadIdx.x); i < channels * 3; i += warps * device::kWarp) {
    double total = 0;
    for (int w = 0; w < warps; ++w) total += sums[i * warps + w];
    out[i % 3 * in.channels + i / 3] = total;
  }
}

template <class T>
cudaError_t forward(const DiceBceLossCoarseStatistics& p, const CoarsePlan& plan, const Partial& partial,
                    cudaStream_t stream) {
  const int64_t blocks = plan.blocks(p.loss.in.batch);
  if (blocks > INT32_MAX || p.loss.in.channels > INT32_MAX / 2) return cudaErrorInvalidValue;
  if (blocks > 0) {
    const cudaError_t error = LAUNCH((dice_bce_loss_coarse_forward_kernel<T>), static_cast<unsigned>(blocks),
                                     plan.warps() * device::kWarp, plan.bytes, stream, p, plan, partial);
    if (error != cudaSuccess) return error;
  }
  return dice_ce::combine({p.loss.in.batch, p.loss.in.channels, p.loss.overlap, p.loss.bce, p.loss.bad_labels}, plan.tiles(),
                          blocks, partial, stream);
}

}  // namespace
}  // namespace segops::cuda::dice_bce

namespace segops::cuda {

int64_t dice_bce_loss_coarse_scratch_bytes(const DiceBceLossCoarseStatistics& p) {
  const dice_bce::CoarsePlan plan(p);
  return dice_ce::Partial::bytes(p.loss.in.batch * plan.tiles(), p.loss.in.channels, plan.blocks(p.loss.in.batch));
}

Failure dice_bce_loss_coarse_statistics(const DiceBceLossCoarseStatistics& p, void* scratch, void* stream) {
  const dice_bce::CoarsePlan plan(p);
  const dice_ce::Partial partial(scratch, plan.blocks(p.loss.in.batch));
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(
      as_float(p.loss.in.logits_dtype, [&]<class T>(T) { return dice_bce::forward<T>(p, plan, partial, queue); }));
}

}  // namespace segops::cuda
