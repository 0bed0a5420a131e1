// dice_ce_loss of coarse logits, backward: the gradient of the fine pixels, never in memory, gathered into the coarse cells.
//
// A block owns a rectangle of cells, and a slab of the classes. First comes the softmax of each pixel of a piece, kept in
// shared memory; then the gather of coarse_gather.cuh.
#include "coarse_gather.cuh"
#include "dice_ce_loss_coarse.cuh"

namespace segops::cuda::dice_ce {
namespace {

// By shape alone. A block's fine pixels are one piece but where a single cell has more.
struct GatherPlan {
  int rows, columns;              // cells of a block
  int down, across;               // blocks
  int slab, slabs;                // classes of a block
  int piece_rows, piece_columns;  // fine pixels
  bool staged, one_piece;
  // Offsets into shared memory.
  int tables, most, inverse, u, q, weights, labels, window, bytes;
  GatherShared gather;
  static constexpr int kMostSlab = 1024, kMostShared = 112 * 1024;

  int64_t blocks(int64_t batch) const { return batch * down * across * slabs; }

  explicit GatherPlan(const DiceCeLossCoarseBackward& p) {
    const int64_t classes = p.loss.in.classes;
    slab = static_cast<int>(classes < kMostSlab ? classes : kMostSlab);
    slabs = static_cast<int>((classes + slab - 1) / slab);
    for (const bool copy : {true, false}) {
      staged = copy;
      rows = 8;
      columns = 32;
      while (!fits(p)) {
        const bool one_cell = rows == 1 && columns == 1;
        // A copy is not worth blocks of a few cells, whose border is larger than they are.
        if (one_cell || (staged && one_piece && rows * columns <= 16)) break;
        if (columns > 4 * rows || rows == 1)
          columns /= 2;
        else
          rows /= 2;
      }
      if (bytes <= kMostShared) return;
    }
  }

 private:
  // Cuts blocks of so many cells; whether they can be.
  bool fits(const DiceCeLossCoarseBackward& p) {
    const int64_t height = most_fine(p.coarse.vertical, rows), width = most_fine(p.coarse.horizontal, columns);
    const int64_t room = p.loss.in.classes > kMostSlab ? 256 : p.loss.in.logits_dtype == Dtype::float64 ? 1024 : 2048;
    one_piece = height * width <= room;
    piece_columns = static_cast<int>(one_piece || width < 64 ? width : 64);
    piece_rows = static_cast<int>(height < room / piece_columns ? height : room / piece_columns);
    down = static_cast<int>((p.coarse.vertical.in + rows - 1) / rows);
    across = static_cast<int>((p.coarse.horizontal.in + columns - 1) / columns);
    share_out(p);
    return bytes <= kMostShared && (one_piece || (rows == 1 && columns == 1));
  }

  void share_out(const DiceCeLossCoarseBackward& p) {
    const int64_t classes = p.loss.in.classes, pixels = static_cast<int64_t>(piece_rows) * piece_columns;
    const int64_t a = accumulator_bytes(p.loss.in.logits_dtype), element = bytes_of(p.loss.in.logits_dtype);
    Parts parts;
    tables = parts.take(4 * classes * a);
    most = parts.take(pixels * a);
    inverse = parts.take(pixels * a);
    u = parts.take(pixels * a);
    q = parts.take(pixels * a);
    weights = parts.take(pixels * a);
    labels = parts.take(pixels * 4);
    gather.take(parts, a, rows, columns, piece_rows, piece_columns, kGroup, slab);
    window = parts.take(staged ? classes * pitch_of((rows + 2) * (columns + 2), element) * element : 0);
    bytes = parts.bytes;
  }
};

// What is kept of the pixels of a piece.
template <class A>
struct PieceMemory {
  A *most, *inverse, *u, *q, *weight;
  int32_t* label;

  __device__ PieceMemory(unsigned char* shared, const GatherPlan& at)
      : most(reinterpret_cast<A*>(shared + at.most)),
        inverse(reinterpret_cast<A*>(shared + at.inverse)),
        u(reinterpret_cast<A*>(shared + at.u)),
        q(reinterpret_cast<A*>(shared + at.q)),
        weight(reinterpret_cast<A*>(shared + at.weights)),
        label(reinterpret_cast<int32_t*>(shared + at.labels)) {}
};

// The softmax of one fine pixel, and what its gradient needs of it. read(c): its logit.
template <class T, class A, class Read>
__device__ __forceinline__ void keep_pixel(const DiceCeLossInputs& in, const Tables<A>& tables, const FinePixel<A>& pixel,
                                           const PieceMemory<A>& memory, int i, const Read& read) {
  memory.label[i] = pixel.label;
  memory.weight[i] = pixel.weight;
  if (pixel.label < 0) {
    memory.most[i] = memory.inverse[i] = memory.u[i] = memory.q[i] = 0;
    return;
  }
  const int classes = static_cast<int>(in.classes);
  Normaliser<T, 1> softmax;
  A dot = 0, own = 0;
  for (int c = 0; c < classes; c += kGroup) {
    A value[kGroup], most = -A(INFINITY);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (c + k >= classes) break;
      value[k] = read(c + k);
      most = larger(most, value[k]);
      if (pixel.label == c + k) own = value[k];
    }
    const A factor = softmax.raise(0, most);
    dot *= in.squared ? factor * factor : factor;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (c + k >= classes) break;
      const A e = exponential<T>(value[k] - softmax.shift(0)), g = tables.grad_p[c + k];
      softmax.sum[0] += e;
      dot += in.squared ? 2 * g * e * e : g * e;
    }
  }
  const A target = exponential<T>(own - softmax.most[0]);
  const Coefficients<A> of(tables, in.squared, pixel.label, pixel.weight, softmax.sum[0], dot, target);
  memory.most[i] = softmax.most[0];
  memory.inverse[i] = of.inverse;
  memory.u[i] = of.u;
  memory.q[i] = of.q;
}

template <class T, bool kStaged>
__global__ void __launch_bounds__(kCoarseThreads, 1)
    dice_ce_loss_coarse_backward_kernel(DiceCeLossCoarseBackward p, GatherPlan plan) {
  using A = AccumulatorOf<T>;
  const DiceCeLossInputs& in = p.loss.in;
  const LinearAxis &vertical = p.coarse.vertical, &horizontal = p.coarse.horizontal;
  const int thread = static_cast<int>(threadIdx.x);
  BlockIndex index;
  const int left = index.next(plan.across) * plan.columns, top = index.next(plan.down) * plan.rows;
  const int first_class = index.next(plan.slabs) * plan.slab;
  const int64_t image = index.rest;
  const CellBlock block(vertical, horizontal, top, left, plan.rows, plan.columns);
  const int classes =
      static_cast<int>(in.classes) - first_class < plan.slab ? static_cast<int>(in.classes) - first_class : plan.slab;
  const int width = static_cast<int>(horizontal.out);

  DYNAMIC_SHARED(unsigned char, shared);
  const PieceMemory<A> memory(shared, plan);
  const Tables<A> tables(p.loss, image, reinterpret_cast<A*>(shared + plan.tables), kCoarseThreads);
  const CoarseWindow<T, kStaged> window(p.coarse.planes, image, 0, static_cast<int>(in.classes), block.cells(),
                                        reinterpret_cast<T*>(shared + plan.window));
  Gather<T, kStaged> gather(block, window, vertical, horizontal, shared, plan.gather);
  gather.begin(classes);

  for (int piece_top = block.fine_top; piece_top < block.fine_bottom; piece_top += plan.piece_rows) {
    for (int piece_left = block.fine_left; piece_left < block.fine_right; piece_left += plan.piece_columns) {
      SYNC_THREADS();  // tables and window are there, and the piece before is done
      gather.move_to(piece_top, piece_left, plan.piece_rows, plan.piece_columns);
      const int span = gather.span;
      for (int i = thread; i < gather.height * span; i += kCoarseThreads) {
        const int y = piece_top + i / span, x = piece_left + i % span;
        BadData bad{0, 0, 0};  // forward has told of it
        const FinePixel<A> pixel(in, image * in.pixels + static_cast<int64_t>(y) * width + x, bad);
        const LinearTap tap = linear_tap(vertical, y);
        const int low = static_cast<int>(tap.low), high = static_cast<int>(tap.high);
        const A weight = static_cast<A>(tap.weight);
        const FineColumn<T, kStaged> column = fine_column<T, kStaged>(horizontal, x);
        keep_pixel<T>(in, tables, pixel, memory, i,
                      [&](int c) { return blend(column.read(window, c, low), column.read(window, c, high), weight); });
      }
      SYNC_THREADS();

      for (int c = 0; c < classes; c += kGroup) {
        const int group = classes - c < kGroup ? classes - c : kGroup;
        for (int i = thread; i < group * span; i += kCoarseThreads) {
          const int k = first_class + c + i / span, x = i % span;
          gather.template sum_down<1>(
              i / span, k, x, plan.rows, [](int) { return 0; },
              [&](int, int, int y, A logit) {
                const int at = y * span + x;
                const Coefficients<A> of{memory.inverse[at], memory.u[at], memory.q[at]};
                return gradient(tables, of, in.squared, memory.label[at], memory.weight[at], k,
                                exponential<T>(logit - memory.most[at]));
              });
        }
        SYNC_THREADS();
        gather.sum_along(c, group, plan.rows);
        SYNC_THREADS();  // the sums have been read
      }
    }
  }
  gather.store(p.grad_logits, image, first_class, classes);
}

template <class T, bool kStaged>
cudaError_t launch(const DiceCeLossCoarseBackward& p, const GatherPlan& plan, cudaStream_t stream) {
  const cudaError_t allowed = OPT_IN_SHARED((dice_ce_loss_coarse_backward_kernel<T, kStaged>), plan.bytes);
  if (allowed != cudaSuccess) return allowed;
  return LAUNCH((dice_ce_loss_coarse_backward_kernel<T, kStaged>), static_cast<unsigned>(plan.blocks(p.loss.in.batch)),
                kCoarseThreads, plan.bytes, stream, p, plan);
}

template <class T>
cudaError_t backward(const DiceCeLossCoarseBackward& p, cudaStream_t stream) {
  const GatherPlan plan(p);
  const int64_t blocks = plan.blocks(p.loss.in.batch);
  if (blocks > INT32_MAX || p.loss.in.classes > kDiceCeLossMostClasses) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaSuccess;
  return plan.staged ? launch<T, true>(p, plan, stream) : launch<T, false>(p, plan, stream);
}

}  // namespace
}  // namespace segops::cuda::dice_ce

namespace segops::cuda {

Failure dice_ce_loss_coarse_backward(const DiceCeLossCoarseBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.loss.in.logits_dtype, [&]<class T>(T) { return dice_ce::backward<T>(p, queue); }));
}

}  // namespace segops::cuda
