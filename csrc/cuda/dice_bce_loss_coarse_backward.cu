// dice_bce_loss of coarse logits, backward: the gradient of the fine pixels, never in memory, gathered into the coarse cells
// (coarse_gather.cuh). A block owns a rectangle of cells of a slab of channels.
#include "coarse_gather.cuh"
#include "dice_bce_loss_fine.cuh"

namespace segops::cuda::dice_bce {
namespace {

constexpr int kFetched = 4;  // fine rows whose labels are under way at once

// By shape alone. A block's fine pixels are one piece but where a single cell has more.
struct GatherPlan {
  int rows, columns;       // cells of a block
  int down, across;        // blocks
  int slab, slabs, group;  // channels of a block, and those summed at once
  int label_bytes;
  int piece_rows, piece_columns;  // fine pixels
  int constants, window, bytes;   // of shared memory
  GatherShared gather;
  static constexpr int64_t kEnough = 264, kMostShared = 72 * 1024;
  static constexpr int kMostPieceRows = 256, kMostPieceColumns = 512;

  int64_t blocks(int64_t batch) const { return batch * slabs * down * across; }

  explicit GatherPlan(const DiceBceLossCoarseBackward& p) {
    slab = slab_of(p.coarse.planes);
    slabs = static_cast<int>((p.loss.in.channels + slab - 1) / slab);
    label_bytes = static_cast<int>(bytes_of(p.loss.in.target_dtype));
    rows = 16;
    columns = 128;
    for (;;) {
      const bool fits = cut(p), enough = blocks(p.loss.in.batch) >= kEnough;
      // Narrower, threads would be idle, or the sectors at its sides much beside the block.
      const bool narrow = columns <= 32 || slab * most_fine(p.coarse.horizontal, columns / 2) < kCoarseThreads;
      if (fits && (enough || (narrow && rows <= 4))) return;
      if (rows == 1 && columns == 1) return;
      if (rows <= (fits ? 4 : 1) || (columns > 8 * rows && !(fits && narrow)))
        columns /= 2;
      else
        rows /= 2;
    }
  }

 private:
  // Whether a block's fine pixels are one piece, and fit.
  bool cut(const DiceBceLossCoarseBackward& p) {
    const int64_t height = most_fine(p.coarse.vertical, rows), width = most_fine(p.coarse.horizontal, columns);
    const int64_t element = bytes_of(p.loss.in.logits_dtype), a = accumulator_bytes(p.loss.in.logits_dtype);
    piece_rows = static_cast<int>(height < kMostPieceRows ? height : kMostPieceRows);
    piece_columns = static_cast<int>(width < kMostPieceColumns ? width : kMostPieceColumns);
    down = static_cast<int>((p.coarse.vertical.in + rows - 1) / rows);
    across = static_cast<int>((p.coarse.horizontal.in + columns - 1) / columns);
    // Two fine columns for each thread, at least.
    const int enough = 2 * kCoarseThreads / piece_columns;
    group = enough < 1 ? 1 : enough < slab ? enough : slab;
    Parts parts;
    gather.take(parts, a, rows, columns, piece_rows, piece_columns, group, slab);
    constants = parts.take((3 * slab + 1) * a);
    window = parts.take(slab * pitch_of((rows + 2) * (columns + 2), element) * element);
    bytes = parts.bytes;
    return bytes <= kMostShared && height <= kMostPieceRows && width <= kMostPieceColumns;
  }
};

template <class T>
__global__ void __launch_bounds__(kCoarseThreads, sizeof(T) == 8 ? 1 : 2)
    dice_bce_loss_coarse_backward_kernel(DiceBceLossCoarseBackward p, GatherPlan plan) {
  using A = AccumulatorOf<T>;
  const DiceBceLossInputs& in = p.loss.in;
  const LinearAxis &vertical = p.coarse.vertical, &horizontal = p.coarse.horizontal;
  BlockIndex index;
  const int left = index.next(plan.across) * plan.columns, top = index.next(plan.down) * plan.rows;
  const int first_channel = index.next(plan.slabs) * plan.slab;
  const int64_t image = index.rest;
  const int rest = static_cast<int>(in.channels) - first_channel, channels = rest < plan.slab ? rest : plan.slab;
  const CellBlock block(vertical, horizontal, top, left, plan.rows, plan.columns);

  DYNAMIC_SHARED(unsigned char, shared);
  const CoarseWindow<T, true> window(p.coarse.planes, image, first_channel, channels, block.cells(),
                                     reinterpret_cast<T*>(shared + plan.window));
  Gather<T, true> gather(block, window, vertical, horizontal, shared, plan.gather);
  gather.begin(channels);
  const Constants<T> constant(in);
  // Read once a block: the derivatives with respect to the channels' sums, and to the cross-entropy.
  A* const constants = reinterpret_cast<A*>(shared + plan.constants);
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += kCoarseThreads) {
    const Slopes<A> slopes = slopes_of<A>(p.loss, image, first_channel + c);
    constants[3 * c] = slopes.i, constants[3 * c + 1] = slopes.p, constants[3 * c + 2] = slopes.q;
  }
  if (threadIdx.x == 0) constants[3 * plan.slab] = p.loss.grad_bce ? static_cast<A>(device::load(p.loss.grad_bce)) : A(0);

  for (int piece_top = block.fine_top; piece_top < block.fine_bottom; piece_top += plan.piece_rows) {
    for (int piece_left = block.fine_left; piece_left < block.fine_right; piece_left += plan.piece_columns) {
      gather.move_to(piece_top, piece_left, plan.piece_rows, plan.piece_columns);
      SYNC_THREADS();  // and window, totals and constants are there
      const A bce = constants[3 * plan.slab];
      // Lanes begin at a whole sector of labels, which the piece may begin within.
      const int64_t first_label =
          image * in.target.stride_n + first_channel * in.target.stride_c + piece_top * horizontal.out + piece_left;
      const int before =
          static_cast<int>((reinterpret_cast<uintptr_t>(in.target.data) + first_label * plan.label_bytes) % 32) /
          plan.label_bytes;
      const int lanes = (before + gather.span + device::kWarp - 1) / device::kWarp * device::kWarp;
      for (int first = 0; first < channels; first += plan.group) {
        const int group = channels - first < plan.group ? channels - first : plan.group;
        for (int i = static_cast<int>(threadIdx.x); i < group * lanes; i += kCoarseThreads) {
          const int slot = i / lanes, x = i - slot * lanes - before, c = first + slot;
          if (x < 0 || x >= gather.span) continue;
          const Slopes<A> slopes{constants[3 * c], constants[3 * c + 1], constants[3 * c + 2]};
          gather.template sum_down<kFetched>(
              slot, c, x, plan.rows,
              [&](int y) {
                return FinePixels<A, kFetched>(
                    in, image, first_channel + c, [&](int v) { return y + v < gather.height; },
                    [&](int v) { return (piece_top + y + v) * horizontal.out + piece_left + x; },
                    [](int, int64_t) {});  // forward has told of bad ones
              },
              [&](const FinePixels<A, kFetched>& pixels, int v, int, A logit) {
                if (!counts(pixels.label[v])) return A(0);
                return gradient(constant, logit, pixels.label[v], pixels.weight[v], bce, slopes);
              });
        }
        SYNC_THREADS();
        gather.sum_along(first, group, plan.rows);
        SYNC_THREADS();  // the sums have been read
      }
    }
  }
  gather.store(p.grad_logits, image, first_channel, channels);
}

template <class T>
cudaError_t backward(const DiceBceLossCoarseBackward& p, cudaStream_t stream) {
  const GatherPlan plan(p);
  const int64_t blocks = plan.blocks(p.loss.in.batch);
  if (blocks > INT32_MAX || p.loss.in.channels > INT32_MAX / 2) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaSuccess;
  const cudaError_t allowed = OPT_IN_SHARED((dice_bce_loss_coarse_backward_kernel<T>), plan.bytes);
  if (allowed != cudaSuccess) return allowed;
  return LAUNCH((dice_bce_loss_coarse_backward_kernel<T>), static_cast<unsigned>(blocks), kCoarseThreads, plan.bytes, stream,
                p, plan);
}

}  // namespace
}  // namespace segops::cuda::dice_bce

namespace segops::cuda {

Failure dice_bce_loss_coarse_backward(const DiceBceLossCoarseBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.loss.in.logits_dtype, [&]<class T>(T) { return dice_bce::backward<T>(p, queue); }));
}

}  // namespace segops::cuda
