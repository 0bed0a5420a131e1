// dice_bce_loss of coarse logits, backward: the gradient of the fine pixels, never in memory, gathered into the coarse cells
// (coarse_gather.cuh). A block owns a rectangle of cells of a slab of channels.
#include "coarse_gather.cuh"
#include "dice_bce_loss_fine.cuh"

namespace segops::cuda::dice_bce {
namespace {

constexpr int kFetched = 4;  // fine rows whose labels are under way at once

// By shape alone. A block's fine pixels are one piece but where a single cell has more.
struct GatherPlan {
  int rows, columns;              // cells of a block
  int down, across;               // blocks
  int slab, slabs;                // channels of a block
  int piece_rows, piece_columns;  // fine pixels
  int constants, window, bytes;   // of shared memory
  GatherShared gather;
  static constexpr int64_t kEnough = 264, kMostShared = 72 * 1024;
  static constexpr int kMostPieceRows = 256, kMostPieceColumns = 512;

  int64_t blocks(int64_t batch) const { return batch * slabs * down * across; }

  explicit GatherPlan(const DiceBceLossCoarseBackward& p) {
    const int64_t channels = p.loss.in.channels, batch = p.loss.in.batch;
    slab = static_cast<int>(channels < kSlab ? channels : kSlab);
    if (slab < 1) slab = 1;
    slabs = static_cast<int>((channels + slab - 1) / slab);
    rows = 8;
    // A thread for each fine column and channel, at least.
    for (columns = 128; columns > 16 && slab * most_fine(p.coarse.horizontal, columns / 2) >= 2 * kCoarseThreads;)
      columns /= 2;
    for (;;) {
      const bool fits = cut(p), enough = blocks(batch) >= kEnough;
      if (fits && (enough || (rows <= 4 && columns <= 16))) return;
      if (rows == 1 && columns == 1) return;
      if (rows > 4 || columns == 1)
        rows /= 2;
      else
        columns /= 2;
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
    Parts parts;
    gather.take(parts, a, rows, columns, piece_rows, piece_columns, slab, slab);
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
      SYNC_THREADS();  // the piece before is done
      gather.move_to(piece_top, piece_left, plan.piece_rows, plan.piece_columns);
      SYNC_THREADS();  // and window, totals and constants are there
      const A bce = constants[3 * plan.slab];
      for (int i = static_cast<int>(threadIdx.x); i < channels * gather.span; i += kCoarseThreads) {
        const int c = i / gather.span, x = i - c * gather.span, channel = first_channel + c;
        const Slopes<A> slopes{constants[3 * c], constants[3 * c + 1], constants[3 * c + 2]};
        gather.template sum_down<kFetched>(
            c, c, x, plan.rows,
            [&](int y) {
              return FinePixels<A, kFetched>(
                  in, image, channel, [&](int v) { return y + v < gather.height; },
                  [&](int v) { return (piece_top + y + v) * horizontal.out + piece_left + x; },
                  [](int, int64_t) {});  // forward has told of bad ones
            },
            [&](const FinePixels<A, kFetched>& pixels, int v, int, A logit) {
              if (!counts(pixels.label[v])) return A(0);
              return gradient(constant, logit, pixels.label[v], pixels.weight[v], bce, slopes);
            });
      }
      SYNC_THREADS();
      gather.sum_along(0, channels, plan.rows);
    }
  }
  SYNC_THREADS();
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
