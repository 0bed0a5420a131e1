// dice_ce_loss of coarse logits, backward: the gradient of the fine pixels, never in memory, gathered into the coarse cells.
//
// A block owns a rectangle of cells, and a slab of the classes. It takes the fine pixels that read its cells, those beyond
// its border too, in pieces. First the softmax of each pixel of a piece, kept in shared memory; then the gradients, summed
// down the columns, a thread a class and fine column; then those sums along the rows, a thread a class and cell. Every sum
// has one order: rows first, then columns, then pieces.
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
  int tables, most, inverse, u, q, weights, labels, row_low, row_weight, column_weight, firsts, sums, totals, window, bytes;
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
  // Fine elements that read `extent` neighbouring cells.
  static int64_t most_fine(const LinearAxis& axis, int64_t extent) {
    int64_t most = 1;
    for (int64_t begin = 0; begin < axis.in; begin += extent) {
      const int64_t fine = first_output(axis, begin + extent) - first_output(axis, begin - 1);
      most = fine > most ? fine : most;
    }
    return most;
  }

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
    const int64_t a = p.loss.in.logits_dtype == Dtype::float64 ? 8 : 4;
    const int64_t element = element_of(p.loss.in.logits_dtype);
    Parts parts;
    tables = parts.take(4 * classes * a);
    most = parts.take(pixels * a);
    inverse = parts.take(pixels * a);
    u = parts.take(pixels * a);
    q = parts.take(pixels * a);
    weights = parts.take(pixels * a);
    labels = parts.take(pixels * 4);
    row_low = parts.take(piece_rows * 4);
    row_weight = parts.take(piece_rows * a);
    column_weight = parts.take(piece_columns * a);
    firsts = parts.take((columns + 2) * 4);
    sums = parts.take(kGroup * rows * piece_columns * a);
    totals = parts.take(static_cast<int64_t>(slab) * rows * columns * a);
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
  unsigned index = blockIdx.x;
  const auto next_of = [&](int count) {
    const unsigned quotient = index / static_cast<unsigned>(count), rest = index - quotient * static_cast<unsigned>(count);
    index = quotient;
    return static_cast<int>(rest);
  };
  const int left = next_of(plan.across) * plan.columns, top = next_of(plan.down) * plan.rows;
  const int first_class = next_of(plan.slabs) * plan.slab;
  const int64_t image = index;
  const int last_row = static_cast<int>(vertical.in) - 1, last_column = static_cast<int>(horizontal.in) - 1;
  const int rows = last_row + 1 - top < plan.rows ? last_row + 1 - top : plan.rows;
  const int columns = last_column + 1 - left < plan.columns ? last_column + 1 - left : plan.columns;
  const int classes =
      static_cast<int>(in.classes) - first_class < plan.slab ? static_cast<int>(in.classes) - first_class : plan.slab;
  const int width = static_cast<int>(horizontal.out);
  const int fine_top = static_cast<int>(first_output(vertical, top - 1));
  const int fine_bottom = static_cast<int>(first_output(vertical, top + rows));
  const int fine_left = static_cast<int>(first_output(horizontal, left - 1));
  const int fine_right = static_cast<int>(first_output(horizontal, left + columns));

  DYNAMIC_SHARED(unsigned char, shared);
  const PieceMemory<A> memory(shared, plan);
  int* const row_low = reinterpret_cast<int*>(shared + plan.row_low);
  A* const row_weight = reinterpret_cast<A*>(shared + plan.row_weight);
  A* const column_weight = reinterpret_cast<A*>(shared + plan.column_weight);
  int* const firsts = reinterpret_cast<int*>(shared + plan.firsts);
  A* const sums = reinterpret_cast<A*>(shared + plan.sums);
  A* const totals = reinterpret_cast<A*>(shared + plan.totals);  // [class][row][column]

  const Tables<A> tables(p.loss, image, reinterpret_cast<A*>(shared + plan.tables), kCoarseThreads);
  const int row_before = top > 0 ? top - 1 : 0, column_before = left > 0 ? left - 1 : 0;
  const int row_after = top + rows < last_row ? top + rows : last_row;
  const int column_after = left + columns < last_column ? left + columns : last_column;
  const Cells cells{row_before, column_before, row_after - row_before + 1, column_after - column_before + 1};
  const CoarseWindow<T, kStaged> window(p.coarse.planes, image, cells, reinterpret_cast<T*>(shared + plan.window));
  for (int i = thread; i < classes * rows * columns; i += kCoarseThreads) totals[i] = 0;
  for (int j = thread; j < columns + 2; j += kCoarseThreads)
    firsts[j] = static_cast<int>(first_output(horizontal, static_cast<int64_t>(left) - 1 + j));

  for (int piece_top = fine_top; piece_top < fine_bottom; piece_top += plan.piece_rows) {
    const int height = fine_bottom - piece_top < plan.piece_rows ? fine_bottom - piece_top : plan.piece_rows;
    for (int piece_left = fine_left; piece_left < fine_right; piece_left += plan.piece_columns) {
      const int span = fine_right - piece_left < plan.piece_columns ? fine_right - piece_left : plan.piece_columns;
      const auto column_at = [&](int x) {
        const LinearTap tap = linear_tap(horizontal, x);
        return FineColumn<T, kStaged>{static_cast<int>(tap.low), static_cast<int>(tap.high), static_cast<A>(tap.weight)};
      };
      SYNC_THREADS();  // tables and window are there, and the piece before is done
      for (int i = thread; i < height; i += kCoarseThreads) {
        const LinearTap tap = linear_tap(vertical, piece_top + i);
        row_low[i] = static_cast<int>(tap.low);
        row_weight[i] = static_cast<A>(tap.weight);
      }
      for (int i = thread; i < span; i += kCoarseThreads) column_weight[i] = column_at(piece_left + i).weight;
      for (int i = thread; i < height * span; i += kCoarseThreads) {
        const int y = piece_top + i / span, x = piece_left + i % span;
        BadData bad{0, 0, 0};  // forward has told of it
        const FinePixel<A> pixel(in, image * in.pixels + static_cast<int64_t>(y) * width + x, bad);
        const LinearTap tap = linear_tap(vertical, y);
        const int low = static_cast<int>(tap.low), high = static_cast<int>(tap.high);
        const A weight = static_cast<A>(tap.weight);
        const FineColumn<T, kStaged> column = column_at(x);
        keep_pixel<T>(in, tables, pixel, memory, i,
                      [&](int c) { return blend(column.read(window, c, low), column.read(window, c, high), weight); });
      }
      SYNC_THREADS();

      const int first_row = row_low[0], beyond = row_low[height - 1] + 2;  // of the cells that the piece reads
      for (int c = 0; c < classes; c += kGroup) {
        const int group = classes - c < kGroup ? classes - c : kGroup;
        for (int i = thread; i < group * span; i += kCoarseThreads) {
          const int k = first_class + c + i / span, x = i % span;
          const FineColumn<T, kStaged> column = column_at(piece_left + x);
          A* const own = sums + i / span * plan.rows * span + x;
          const auto put = [&](int row, A sum) {
            if (row >= top && row < top + rows) own[(row - top) * span] = sum;
          };
          FineRows<T, kStaged> fine;
          A sum = 0, next = 0;
          int low = first_row;
          for (int y = 0; y < height; ++y) {
            while (low < row_low[y]) {
              put(low++, sum);
              sum = next;
              next = 0;
            }
            const int at = y * span + x;
            const A weight = row_weight[y], logit = fine.at(window, column, k, low, last_row, weight);
            const Coefficients<A> of{memory.inverse[at], memory.u[at], memory.q[at]};
            const A g = gradient(tables, of, in.squared, memory.label[at], memory.weight[at], k,
                                 exponential<T>(logit - memory.most[at]));
            sum += (low == last_row ? A(1) : A(1) - weight) * g;
            next += weight * g;
          }
          put(low, sum);
          put(low + 1, next);
        }
        SYNC_THREADS();
        for (int i = thread; i < group * rows * columns; i += kCoarseThreads) {
          const int j = i % columns, r = i / columns % rows;
          if (top + r < first_row || top + r >= beyond) continue;
          const A* const from = sums + (i / (columns * rows) * plan.rows + r) * span;
          const auto inside = [&](int x) { return x < piece_left ? 0 : x > piece_left + span ? span : x - piece_left; };
          const int begin = inside(firsts[j]), middle = inside(firsts[j + 1]), end = inside(firsts[j + 2]);
          const bool is_last = left + j == last_column;
          A total = 0;
          for (int x = begin; x < middle; ++x) total += column_weight[x] * from[x];
          for (int x = middle; x < end; ++x) total += (is_last ? A(1) : A(1) - column_weight[x]) * from[x];
          totals[c * rows * columns + i] += total;
        }
        SYNC_THREADS();  // the sums have been read
      }
    }
  }

  // Along memory: the cells of a row side by side, or the classes of a cell.
  const bool planar = p.grad_logits.stride_w == 1;
  const int count = rows * columns;
  T* const to = static_cast<T*>(p.grad_logits.data) + image * p.grad_logits.stride_n + first_class * p.grad_logits.stride_c +
                top * p.grad_logits.stride_h + left * p.grad_logits.stride_w;
  for (int i = thread; i < classes * count; i += kCoarseThreads) {
    const int c = planar ? i / count : i % classes, cell = planar ? i % count : i / classes;
    to[c * p.grad_logits.stride_c + cell / columns * p.grad_logits.stride_h + cell % columns * p.grad_logits.stride_w] =
        narrow<T>(totals[c * count + cell]);
  }
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
  switch (p.loss.in.logits_dtype) {
    case Dtype::float32: return failure(dice_ce::backward<float>(p, queue));
    case Dtype::float64: return failure(dice_ce::backward<double>(p, queue));
    case Dtype::bfloat16: return failure(dice_ce::backward<__nv_bfloat16>(p, queue));
    default: return failure(dice_ce::backward<__half>(p, queue));
  }
}

}  // namespace segops::cuda
