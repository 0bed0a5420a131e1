// dice_ce_loss of coarse logits, forward: the sums of dice_ce_loss.cu from logits that are interpolated where they are used.
//
// A block has a rectangle of fine pixels and copies the coarse cells that it reads to shared memory. A lane of a warp owns
// kRows pixels, one below the other, and sweeps over the classes in groups of eight: first the maximum and the sum of
// exponentials, online, then the probabilities. The sums of a warp are in shared memory, each of them one lane's, and the
// block's are added up in the order of the warps.
#include "dice_ce_loss_coarse.cuh"

namespace segops::cuda::dice_ce {
namespace {

constexpr int kMostOwned = 4;
template <class T>
constexpr int kRows = sizeof(T) == 8 ? kMostOwned / 2 : kMostOwned;

// By shape alone, and so are the sums.
struct CoarsePlan {
  int rows, columns;  // of a tile
  int down, across;   // tiles
  int warps;          // of a block
  int window, bytes;  // of shared memory, which begins with the warps' sums
  bool staged;
  static constexpr int64_t kEnough = 264, kMostSums = 48 * 1024;

  int64_t tiles() const { return static_cast<int64_t>(down) * across; }

  CoarsePlan(const DiceCeLossCoarseStatistics& p) {
    const int64_t classes = p.loss.in.classes, height = p.coarse.vertical.out, width = p.coarse.horizontal.out;
    const int64_t element = bytes_of(p.loss.in.logits_dtype);
    const auto cut = [&](int r, int c) {
      rows = r;
      columns = c;
      down = static_cast<int>((height + r - 1) / r);
      across = static_cast<int>((width + c - 1) / c);
    };
    constexpr int kShapes[][2] = {{32, 128}, {32, 64}, {16, 64}, {8, 64}, {8, 32}};
    int64_t cells = 0;
    staged = false;
    for (const auto& shape : kShapes) {
      cut(shape[0], shape[1]);
      while (p.loss.in.batch * tiles() < kEnough && rows > 8) cut(rows / 2, columns);
      const int64_t most = most_read(p.coarse.vertical, rows) * most_read(p.coarse.horizontal, columns);
      cells = classes * pitch_of(most, element) * element;
      staged = cells <= kMostWindow;
      if (staged) break;
    }
    if (!staged) cut(kShapes[0][0], kShapes[0][1]);
    const int64_t of_warp = 3 * classes * 8;
    // No more than have pixels to work on.
    const int lanes = rows * columns / kMostOwned / device::kWarp;
    for (warps = 8; warps > 1 && (warps * of_warp > kMostSums || warps > lanes);) warps /= 2;
    Parts parts;
    parts.take(warps * of_warp);
    window = parts.take(staged ? cells : 0);
    bytes = parts.bytes;
  }
};

template <class T, bool kStaged>
__global__ void __launch_bounds__(kCoarseThreads, 1)
    dice_ce_loss_coarse_forward_kernel(DiceCeLossCoarseStatistics p, CoarsePlan plan, Partial partial) {
  using A = AccumulatorOf<T>;
  constexpr int V = kRows<T>;
  const DiceCeLossInputs& in = p.loss.in;
  const int classes = static_cast<int>(in.classes), warp = warp_id(), thread = static_cast<int>(threadIdx.x);
  const int threads = plan.warps * device::kWarp;
  const int height = static_cast<int>(p.coarse.vertical.out), width = static_cast<int>(p.coarse.horizontal.out);
  const int last_row = static_cast<int>(p.coarse.vertical.in) - 1;
  const unsigned row_of_tiles = blockIdx.x / static_cast<unsigned>(plan.across);
  const int64_t image = row_of_tiles / static_cast<unsigned>(plan.down);
  const int top = static_cast<int>(row_of_tiles % static_cast<unsigned>(plan.down)) * plan.rows;
  const int left = static_cast<int>(blockIdx.x % static_cast<unsigned>(plan.across)) * plan.columns;
  const int rows = height - top < plan.rows ? height - top : plan.rows;
  const int columns = width - left < plan.columns ? width - left : plan.columns;

  DYNAMIC_SHARED(unsigned char, shared);
  double* const all_sums = reinterpret_cast<double*>(shared);
  double* const sums = all_sums + warp * 3 * classes;  // I, P, T of this warp; an entry belongs to one lane
  const CoarseWindow<T, kStaged> window(p.coarse.planes, image, 0, classes,
                                        Cells::read_by(p.coarse.vertical, p.coarse.horizontal, top, rows, left, columns),
                                        reinterpret_cast<T*>(shared + plan.window));
  for (int i = thread; i < plan.warps * 3 * classes; i += threads) all_sums[i] = 0;
  A weights = 0;
  for (int c = 0; c < classes; ++c) weights += in.weight ? static_cast<A>(device::load(in.weight + c)) : A(1);
  const A keep = static_cast<A>(1 - in.label_smoothing);
  const A spread = static_cast<A>(in.label_smoothing / static_cast<double>(classes));
  const bool smooth = in.label_smoothing != 0;
  double loss_sum = 0, share_sum = 0;
  BadData bad{0, 0, 0};
  SYNC_THREADS();

  const int units_across = (columns + device::kWarp - 1) / device::kWarp, units = (rows + V - 1) / V * units_across;
  for (int unit = warp; unit < units; unit += plan.warps) {
    const int first = top + unit / units_across * V, x = left + unit % units_across * device::kWarp + lane_id();
    // What lies beyond the tile is read like its last pixel, and ignored.
    const LinearTap across = linear_tap(p.coarse.horizontal, x < left + columns ? x : left + columns - 1);
    const FineColumn<T, kStaged> column{static_cast<int>(across.low), static_cast<int>(across.high),
                                        static_cast<A>(across.weight)};
    FinePixel<A> pixel[V];
    int low[V];
    A down[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int y = first + v < top + rows ? first + v : top + rows - 1;
      const LinearTap tap = linear_tap(p.coarse.vertical, y);
      low[v] = static_cast<int>(tap.low);
      down[v] = static_cast<A>(tap.weight);
      if (first + v < top + rows && x < left + columns)
        pixel[v] = FinePixel<A>(in, image * in.pixels + static_cast<int64_t>(y) * width + x, bad);
    }
    const auto read = [&](int c, A(&value)[V]) {
      FineRows<T, kStaged> fine;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A interpolated = fine.at(window, column, c, low[v], last_row, down[v]);
        value[v] = pixel[v].label < 0 ? A(0) : interpolated;
      }
    };

    Normaliser<T, V> softmax;
    A own[V], best[V], weighted[V];
    int winner[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      best[v] = -A(INFINITY);
      own[v] = weighted[v] = 0;
      winner[v] = 0;
    }
    for (int c = 0; c < classes; c += kGroup) {
      A value[kGroup][V], most[V];
#pragma unroll
      for (int v = 0; v < V; ++v) most[v] = -A(INFINITY);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (c + k >= classes) break;
        read(c + k, value[k]);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A logit = value[k][v];
          most[v] = larger(most[v], logit);
          if (pixel[v].label == c + k) own[v] = logit;
          if (p.loss.confusion && beats(logit, best[v])) {
            best[v] = logit;
            winner[v] = c + k;
          }
        }
      }
#pragma unroll
      for (int v = 0; v < V; ++v) softmax.raise(v, most[v]);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (c + k >= classes) break;
#pragma unroll
        for (int v = 0; v < V; ++v) softmax.sum[v] += exponential<T>(value[k][v] - softmax.shift(v));
      }
    }

    A inverse[V];
#pragma unroll
    for (int v = 0; v < V; ++v) inverse[v] = pixel[v].label >= 0 ? A(1) / softmax.sum[v] : A(0);
    for (int c = 0; (p.loss.overlap || smooth) && c < classes; c += kGroup) {
      A prob_sum[kGroup] = {}, target_sum[kGroup] = {}, target_count[kGroup] = {};
      bool here = false;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (c + k >= classes) break;
        A value[V];
        read(c + k, value);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A logit = value[v] - softmax.most[v], prob = exponential<T>(logit) * inverse[v];
          prob_sum[k] += in.squared ? prob * prob : prob;
          if (smooth) weighted[v] += (in.weight ? static_cast<A>(device::load(in.weight + c + k)) : A(1)) * logit;
          if (pixel[v].label == c + k) {
            here = true;
            target_sum[k] += prob;
            target_count[k] += 1;
          }
        }
      }
      if (!p.loss.overlap) continue;
      const int owner = c + lane_id() / 4;
      const bool owns = lane_id() % 4 == 0 && owner < classes;
      const A probs = warp_sums(prob_sum);
      if (owns) sums[classes + owner] += static_cast<double>(probs);
      if (!device::any(here)) continue;
      const A at_target = warp_sums(target_sum), count = warp_sums(target_count);
      if (owns) {
        sums[owner] += static_cast<double>(at_target);
        sums[2 * classes + owner] += static_cast<double>(count);
      }
    }

#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int32_t label = pixel[v].label;
      const bool valid = label >= 0;
      const A log_sum = logarithm(softmax.sum[v]);
      const A given = valid && in.weight ? static_cast<A>(device::load(in.weight + label)) : A(1);
      const A share = valid ? pixel[v].weight * given : A(0);
      A loss = keep * share * (log_sum - (own[v] - softmax.most[v]));
      if (smooth) loss += spread * pixel[v].weight * (weights * log_sum - weighted[v]);
      loss = valid ? loss : A(0);
      loss_sum += loss;
      share_sum += share;
      if (p.loss.ce_map && first + v < top + rows && x < left + columns)
        static_cast<A*>(p.loss.ce_map)[image * in.pixels + static_cast<int64_t>(first + v) * width + x] = loss;
      if (p.loss.confusion && valid)
        device::atomic_add(reinterpret_cast<unsigned long long*>(p.loss.confusion) + label * in.classes + winner[v], 1ull);
    }
  }

  constexpr int kMostWarps = kCoarseThreads / device::kWarp;
  SHARED_ARRAY(double, ce_of_warp, 2 * kMostWarps);
  SHARED_ARRAY(BadData, bad_of_warp, kMostWarps);
  loss_sum = warp_sum(loss_sum);
  share_sum = warp_sum(share_sum);
  bad = warp_merge(bad);
  if (lane_id() == 0) {
    ce_of_warp[2 * warp] = loss_sum;
    ce_of_warp[2 * warp + 1] = share_sum;
    bad_of_warp[warp] = bad;
  }
  SYNC_THREADS();
  double* const out = partial.overlap + blockIdx.x * (3 * in.classes);
  for (int i = thread; p.loss.overlap && i < 3 * classes; i += threads) {
    double total = 0;
    for (int w = 0; w < plan.warps; ++w) total += all_sums[w * 3 * classes + i];
    out[i] = total;
  }
  if (thread == 0) {
    for (int w = 1; w < plan.warps; ++w) {
      ce_of_warp[0] += ce_of_warp[2 * w];
      ce_of_warp[1] += ce_of_warp[2 * w + 1];
      bad = merge(bad, bad_of_warp[w]);
    }
    partial.ce[2 * blockIdx.x] = ce_of_warp[0];
    partial.ce[2 * blockIdx.x + 1] = ce_of_warp[1];
    partial.bad[blockIdx.x] = bad;
  }
}

template <class T, bool kStaged>
cudaError_t launch(const DiceCeLossCoarseStatistics& p, const CoarsePlan& plan, const Partial& partial,
                   cudaStream_t stream) {
  const cudaError_t allowed = OPT_IN_SHARED((dice_ce_loss_coarse_forward_kernel<T, kStaged>), plan.bytes);
  if (allowed != cudaSuccess) return allowed;
  return LAUNCH((dice_ce_loss_coarse_forward_kernel<T, kStaged>), static_cast<unsigned>(p.loss.in.batch * plan.tiles()),
                plan.warps * device::kWarp, plan.bytes, stream, p, plan, partial);
}

template <class T>
cudaError_t forward(const DiceCeLossCoarseStatistics& p, const CoarsePlan& plan, const Partial& partial,
                    cudaStream_t stream) {
  const int64_t blocks = p.loss.in.batch * plan.tiles();
  if (blocks > INT32_MAX || p.loss.in.classes > kDiceCeLossMostClasses) return cudaErrorInvalidValue;
  if (blocks > 0) {
    const cudaError_t error =
        plan.staged ? launch<T, true>(p, plan, partial, stream) : launch<T, false>(p, plan, partial, stream);
    if (error != cudaSuccess) return error;
  }
  return combine(totals(p.loss), plan.tiles(), blocks, partial, stream);
}

}  // namespace
}  // namespace segops::cuda::dice_ce

namespace segops::cuda {

int64_t dice_ce_loss_coarse_scratch_bytes(const DiceCeLossCoarseStatistics& p) {
  const int64_t tiles = p.loss.in.batch * dice_ce::CoarsePlan(p).tiles();
  return dice_ce::Partial::bytes(tiles, p.loss.in.classes, tiles);
}

Failure dice_ce_loss_coarse_statistics(const DiceCeLossCoarseStatistics& p, void* scratch, void* stream) {
  const dice_ce::CoarsePlan plan(p);
  const dice_ce::Partial partial(scratch, p.loss.in.batch * plan.tiles());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.loss.in.logits_dtype, [&]<class T>(T) { return dice_ce::forward<T>(p, plan, partial, queue); }));
}

}  // namespace segops::cuda
