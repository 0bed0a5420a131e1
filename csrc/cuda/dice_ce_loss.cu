// dice_ce_loss forward: one read of the logits gives all sums that the loss is made of.
//
// Up to 32 classes, a lane holds all logits of its pixels in registers (dice_ce_loss_forward_kernel): maximum, exponentials
// and probabilities come from there. The sums I, P and T of a chunk are in columns of shared memory that belong to one
// thread each, so there are no atomics and no bank conflicts, and registers are left for the logits. More classes:
// dice_ce_loss_sweep.cuh. Both leave the sums of a chunk, and dice_ce_loss_combine_kernel adds up the chunks in order.
#include "dice_ce_loss_rows.cuh"
#include "dice_ce_loss_sweep.cuh"

namespace segops::cuda::dice_ce {

// Offsets into dynamic shared memory.
template <class T, int K, bool kRows>
struct ForwardShared {
  using A = AccumulatorOf<T>;
  static constexpr int kTile = device::kWarp * kOwned<T, K, kRows>, kWarps = kThreads<T> / device::kWarp;
  int columns, weights, sums, labels, values, rows, confusion, bytes;

  SEGOPS_HOST_DEVICE ForwardShared(const DiceCeLossInputs& in, bool with_confusion) {
    const int64_t c = in.classes;
    Parts parts;
    columns = parts.take(3 * c * kThreads<T> * sizeof(A));
    weights = parts.take(c * sizeof(A));
    sums = parts.take(kWarps * 2 * 8);
    labels = parts.take(kWarps * kTile * 4);
    values = parts.take(kWarps * kTile * sizeof(A));
    rows = parts.take(kRows ? kWarps * RowLayout(c, sizeof(T)).tile() : 0);
    confusion = parts.take(with_confusion ? c * c * 4 : 0);
    bytes = parts.bytes;
  }
};

// Counts the argmax of each pixel (the first of equals; NaN counts as largest) against its label.
template <class T, int K, int V>
__device__ __forceinline__ void count_confusion(const Held<T, K, V>& held, const int32_t (&label)[V], int classes,
                                                unsigned* counts) {
  using A = AccumulatorOf<T>;
  A best[V];
  int winner[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    best[v] = held.x[0].get(v);
    winner[v] = 0;
  }
#pragma unroll
  for (int k = 1; k < K; ++k) {
    if (k >= classes) break;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A x = held.x[k].get(v);
      const bool better = x > best[v] || (x != x && best[v] == best[v]);
      best[v] = better ? x : best[v];
      winner[v] = better ? k : winner[v];
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (label[v] >= 0) device::atomic_add(counts + label[v] * classes + winner[v], 1u);
}

template <class T, int K, bool kRows>
__global__ void __launch_bounds__(kThreads<T>, 1)
    dice_ce_loss_forward_kernel(DiceCeLossStatistics p, Plan plan, Access access, Partial partial) {
  using A = AccumulatorOf<T>;
  constexpr int V = kOwned<T, K, kRows>, kTile = device::kWarp * V, kWarps = kThreads<T> / device::kWarp;
  const DiceCeLossInputs& in = p.in;
  const int classes = static_cast<int>(in.classes), thread = static_cast<int>(threadIdx.x), warp = warp_id();
  const Chunk chunk(in, plan, blockIdx.x);
  const ForwardShared<T, K, kRows> at(in, p.confusion != nullptr);
  DYNAMIC_SHARED(unsigned char, shared);
  // I, P and T of this thread: class c at c * kThreads.
  A* const at_target = reinterpret_cast<A*>(shared + at.columns) + thread;
  A* const probs = at_target + classes * kThreads<T>;
  A* const counts = probs + classes * kThreads<T>;
  A* const class_weight = reinterpret_cast<A*>(shared + at.weights);
  double* const sums = reinterpret_cast<double*>(shared + at.sums);
  int32_t* const labels = reinterpret_cast<int32_t*>(shared + at.labels) + warp * kTile;
  A* const values = reinterpret_cast<A*>(shared + at.values) + warp * kTile;
  unsigned* const confusion = reinterpret_cast<unsigned*>(shared + at.confusion);
  const RowTile<T, K> rows{shared + at.rows + warp * RowLayout(classes, sizeof(T)).tile(), RowLayout(classes, sizeof(T))};

  for (int c = 0; c < 3 * classes; ++c) at_target[c * kThreads<T>] = 0;
  A weights = 0;
  for (int c = 0; c < classes; ++c) weights += in.weight ? static_cast<A>(device::load(in.weight + c)) : A(1);
  for (int c = thread; c < classes; c += kThreads<T>)
    class_weight[c] = in.weight ? static_cast<A>(device::load(in.weight + c)) : A(1);
  for (int i = thread; p.confusion && i < classes * classes; i += kThreads<T>) confusion[i] = 0;
  SYNC_THREADS();

  const T* const image = static_cast<const T*>(in.logits) + chunk.image * in.stride_n;
  const A keep = static_cast<A>(1 - in.label_smoothing);
  const A spread = static_cast<A>(in.label_smoothing / static_cast<double>(classes));
  const bool smooth = in.label_smoothing != 0;
  double loss_sum = 0, share_sum = 0;
  BadData bad{0, 0, 0};

  for (int first = warp * kTile; first < chunk.count; first += kWarps * kTile) {
    const int rest = chunk.count - first < kTile ? chunk.count - first : kTile;
    Pixels<A, V> pixels;
    pixels.load(in, chunk, first, access.vector, labels, values, bad);
    const T* const tile = image + (chunk.begin + first) * in.stride_s;
    Held<T, K, V> held;
    if constexpr (kRows)
      rows.load(held, tile, in.stride_s, classes, rest, access.vector && rest == kTile);
    else
      held.load_planes(tile, in.stride_c, classes, rest, access.vector);
    held.clear_ignored(pixels.label, classes);
    if (p.confusion) {
      count_confusion(held, pixels.label, classes, confusion);
      held.forget(access.zero);
    }

    A most[V], sum[V], own[V], weighted[V];
    held.largest(most);
    held.forget(access.zero);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = own[v] = weighted[v] = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) break;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A x = held.x[k].get(v) - most[v], e = exponential<T>(x);
        sum[v] += e;
        if (smooth) weighted[v] += class_weight[k] * x;
        if (pixels.label[v] == k) own[v] = x;
        if constexpr (Held<T, K, V>::kWide) held.x[k].set(v, e);
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool valid = pixels.label[v] >= 0;
      const A log_sum = logarithm(sum[v]), inverse = A(1) / sum[v];
      const A share = valid ? pixels.weight[v] * class_weight[pixels.label[v]] : A(0);
      A loss = keep * share * (log_sum - own[v]);
      if (smooth) loss += spread * pixels.weight[v] * (weights * log_sum - weighted[v]);
      loss = valid ? loss : A(0);
      loss_sum += loss;
      share_sum += share;
      if (p.ce_map) values[place<V>(v, access.vector)] = loss;
      if (valid && p.overlap) {
        at_target[pixels.label[v] * kThreads<T>] += exponential<T>(own[v]) * inverse;
        counts[pixels.label[v] * kThreads<T>] += 1;
      }
      sum[v] = valid ? inverse : A(0);
    }
    if (p.ce_map) {
      SYNC_WARP();
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int i = lane_id() + v * device::kWarp;
        if (i < rest) static_cast<A*>(p.ce_map)[chunk.image * in.pixels + chunk.begin + first + i] = values[i];
      }
    }
    if (!p.overlap) continue;
    held.forget(access.zero);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) break;
      A total = 0;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A e = held.x[k].get(v);
        if constexpr (!Held<T, K, V>::kWide) e = exponential<T>(e - most[v]);
        const A prob = e * sum[v];
        total += in.squared ? prob * prob : prob;
      }
      probs[k * kThreads<T>] += total;
    }
  }

  // The chunk's sums, in a fixed order: a warp a sum, and the cross-entropy over the warps.
  SHARED_ARRAY(BadData, bad_of_warp, kWarps);
  loss_sum = warp_sum(loss_sum);
  share_sum = warp_sum(share_sum);
  bad = warp_merge(bad);
  if (lane_id() == 0) {
    sums[2 * warp] = loss_sum;
    sums[2 * warp + 1] = share_sum;
    bad_of_warp[warp] = bad;
  }
  SYNC_THREADS();
  double* const out = partial.overlap + blockIdx.x * (3 * in.classes);
  const A* const columns = reinterpret_cast<const A*>(shared + at.columns);
  for (int c = warp; p.overlap && c < 3 * classes; c += kWarps) {
    A total = 0;
    for (int i = lane_id(); i < kThreads<T>; i += device::kWarp) total += columns[c * kThreads<T> + i];
    total = warp_sum(total);
    if (lane_id() == 0) out[c] = static_cast<double>(total);
  }
  if (thread == 0) {
    for (int w = 1; w < kWarps; ++w) {
      sums[0] += sums[2 * w];
      sums[1] += sums[2 * w + 1];
      bad = merge(bad, bad_of_warp[w]);
    }
    partial.ce[2 * blockIdx.x] = sums[0];
    partial.ce[2 * blockIdx.x + 1] = sums[1];
    partial.bad[blockIdx.x] = bad;
  }
  for (int i = thread; p.confusion && i < classes * classes; i += kThreads<T>)
    if (confusion[i] > 0) device::atomic_add(reinterpret_cast<unsigned long long*>(p.confusion) + i, confusion[i]);
}

template <class T, int K, bool kRows>
cudaError_t launch_held(const DiceCeLossStatistics& p, const Plan& plan, const Access& access, const Partial& partial,
                        cudaStream_t stream) {
  const ForwardShared<T, K, kRows> shared(p.in, p.confusion != nullptr);
  const cudaError_t allowed = OPT_IN_SHARED((dice_ce_loss_forward_kernel<T, K, kRows>), shared.bytes);
  if (allowed != cudaSuccess) return allowed;
  return LAUNCH((dice_ce_loss_forward_kernel<T, K, kRows>), static_cast<unsigned>(p.in.batch * plan.chunks), kThreads<T>,
                shared.bytes, stream, p, plan, access, partial);
}

template <class T, bool kRows>
cudaError_t launch_forward(const DiceCeLossStatistics& p, const Plan& plan, const Access& access, const Partial& partial,
                           cudaStream_t stream) {
  if (p.in.classes > kMostHeld) return launch_forward_sweep<T, kRows>(p, plan, access, partial, stream);
  if constexpr (sizeof(T) < 8) {
    if (p.in.classes <= 8) return launch_held<T, 8, kRows>(p, plan, access, partial, stream);
    if (p.in.classes <= 24) return launch_held<T, 24, kRows>(p, plan, access, partial, stream);
  }
  return launch_held<T, 32, kRows>(p, plan, access, partial, stream);
}

template <class T>
cudaError_t forward(const DiceCeLossStatistics& p, const Partial& partial, cudaStream_t stream) {
  const Plan plan(p.in);
  const int64_t chunks = p.in.batch * plan.chunks;
  if (chunks > INT32_MAX || p.in.classes > kDiceCeLossMostClasses) return cudaErrorInvalidValue;
  if (chunks > 0) {
    const Access access{0, Access::aligned(p.in.logits, sizeof(T), p.in.stride_n, p.in.stride_c, p.in.stride_s, p.in)};
    const cudaError_t error = p.in.stride_s == 1 ? launch_forward<T, false>(p, plan, access, partial, stream)
                                                 : launch_forward<T, true>(p, plan, access, partial, stream);
    if (error != cudaSuccess) return error;
  }
  return combine(totals(p), plan.chunks, chunks, partial, stream);
}

}  // namespace segops::cuda::dice_ce

namespace segops::cuda {

int64_t dice_ce_loss_scratch_bytes(const DiceCeLossInputs& in) {
  const int64_t chunks = in.batch * dice_ce::Plan(in).chunks;
  return dice_ce::Partial::bytes(chunks, in.classes, chunks);
}

Failure dice_ce_loss_statistics(const DiceCeLossStatistics& p, void* scratch, void* stream) {
  const dice_ce::Partial partial(scratch, p.in.batch * dice_ce::Plan(p.in).chunks);
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.in.logits_dtype, [&]<class T>(T) { return dice_ce::forward<T>(p, partial, queue); }));
}

}  // namespace segops::cuda
