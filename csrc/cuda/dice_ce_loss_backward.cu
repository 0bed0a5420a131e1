// dice_ce_loss backward: one read of the logits, one write of their gradient.
//
// Up to 32 classes a lane holds its pixels' logits, as in forward. The maths: dice_ce_loss_gradient.cuh.
#include "dice_ce_loss_gradient.cuh"
#include "dice_ce_loss_rows.cuh"
#include "dice_ce_loss_sweep.cuh"

namespace segops::cuda::dice_ce {

template <class T, int K, bool kRows>
struct BackwardShared {
  using A = AccumulatorOf<T>;
  static constexpr int kTile = device::kWarp * kOwned<T, K, kRows>, kWarps = kThreads<T> / device::kWarp;
  int tables, labels, values, rows, bytes;

  SEGOPS_HOST_DEVICE explicit BackwardShared(const DiceCeLossInputs& in) {
    Parts parts;
    tables = parts.take(4 * in.classes * sizeof(A));
    labels = parts.take(kWarps * kTile * 4);
    values = parts.take(kWarps * kTile * sizeof(A));
    rows = parts.take(kRows ? kWarps * RowLayout(in.classes, sizeof(T)).tile() : 0);
    bytes = parts.bytes;
  }
};

template <class T, int K, bool kRows>
__global__ void __launch_bounds__(kThreads<T>, 1)
    dice_ce_loss_backward_kernel(DiceCeLossBackward p, Plan plan, Access access) {
  using A = AccumulatorOf<T>;
  constexpr int V = kOwned<T, K, kRows>, kTile = device::kWarp * V, kWarps = kThreads<T> / device::kWarp;
  constexpr bool kWide = Held<T, K, V>::kWide;
  const DiceCeLossInputs& in = p.in;
  const int classes = static_cast<int>(in.classes), warp = warp_id();
  const Chunk chunk(in, plan, blockIdx.x);
  const BackwardShared<T, K, kRows> at(in);
  DYNAMIC_SHARED(unsigned char, shared);
  const Tables<A> tables(p, chunk.image, reinterpret_cast<A*>(shared + at.tables), kThreads<T>);
  int32_t* const labels = reinterpret_cast<int32_t*>(shared + at.labels) + warp * kTile;
  A* const values = reinterpret_cast<A*>(shared + at.values) + warp * kTile;
  const RowTile<T, K> rows{shared + at.rows + warp * RowLayout(classes, sizeof(T)).tile(), RowLayout(classes, sizeof(T))};
  SYNC_THREADS();

  const T* const image = static_cast<const T*>(in.logits) + chunk.image * in.stride_n;
  T* const grad_image = static_cast<T*>(p.grad_logits) + chunk.image * p.grad_stride_n;
  BadData bad{0, 0, 0};  // forward has told of it
  for (int first = warp * kTile; first < chunk.count; first += kWarps * kTile) {
    const int rest = chunk.count - first < kTile ? chunk.count - first : kTile;
    const bool full = access.vector && rest == kTile;
    Pixels<A, V> pixels;
    pixels.load(in, chunk, first, access.vector, labels, values, bad);
    const T* const tile = image + (chunk.begin + first) * in.stride_s;
    T* const grad_tile = grad_image + (chunk.begin + first) * p.grad_stride_s;
    Held<T, K, V> held;
    if constexpr (kRows)
      rows.load(held, tile, in.stride_s, classes, rest, full);
    else
      held.load_planes(tile, in.stride_c, classes, rest, access.vector);
    held.clear_ignored(pixels.label, classes);

    A most[V], sum[V], dot[V], target[V];
    held.largest(most);
    held.forget(access.zero);
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = dot[v] = target[v] = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) break;
      const A g = tables.grad_p[k];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A e = exponential<T>(held.x[k].get(v) - most[v]);
        sum[v] += e;
        dot[v] += in.squared ? 2 * g * e * e : g * e;
        if (pixels.label[v] == k) target[v] = e;
        if constexpr (kWide) held.x[k].set(v, e);
      }
    }
    // The arrays take over what they are read for last: 1 / sum, u and q.
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const Coefficients<A> of(tables, in.squared, pixels.label[v], pixels.weight[v], sum[v], dot[v], target[v]);
      sum[v] = of.inverse;
      dot[v] = of.u;
      target[v] = of.q;
    }
    held.forget(access.zero);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (k >= classes) break;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A e = held.x[k].get(v);
        if constexpr (!kWide) e = exponential<T>(e - most[v]);
        const Coefficients<A> of{sum[v], dot[v], target[v]};
        held.x[k].set(v, gradient(tables, of, in.squared, pixels.label[v], pixels.weight[v], k, e));
      }
      if constexpr (!kRows) held.store_plane(k, grad_tile, p.grad_stride_c, classes, rest, access.vector);
    }
    if constexpr (kRows) rows.store(held, grad_tile, p.grad_stride_s, classes, rest, full);
  }
}

template <class T, bool kRows>
struct BackwardSweepShared {
  using A = AccumulatorOf<T>;
  static constexpr int kTile = device::kWarp * kOwned<T, kGroup, kRows>;
  int tables, most, total, dot, target, labels, values, rows, bytes;

  SEGOPS_HOST_DEVICE explicit BackwardSweepShared(const DiceCeLossInputs& in) {
    Parts parts;
    tables = parts.take(4 * in.classes * sizeof(A));
    most = parts.take(kSweepWarps * kTile * sizeof(A));
    total = parts.take(kSweepWarps * kTile * sizeof(A));
    dot = parts.take(kSweepWarps * kTile * sizeof(A));
    target = parts.take(kTile * sizeof(A));
    labels = parts.take(kTile * 4);
    values = parts.take(kTile * sizeof(A));
    rows = parts.take(staged_bytes<T, kRows>(in));
    bytes = parts.bytes;
  }
};

template <class T, bool kRows>
__global__ void __launch_bounds__(kSweepThreads, 1)
    dice_ce_loss_backward_sweep_kernel(DiceCeLossBackward p, Plan plan, Access access) {
  using A = AccumulatorOf<T>;
  constexpr int V = kOwned<T, kGroup, kRows>, kTile = device::kWarp * V;
  const DiceCeLossInputs& in = p.in;
  const int classes = static_cast<int>(in.classes), thread = static_cast<int>(threadIdx.x), warp = warp_id();
  const Chunk chunk(in, plan, blockIdx.x);
  const BackwardSweepShared<T, kRows> at(in);
  DYNAMIC_SHARED(unsigned char, shared);
  const Tables<A> tables(p, chunk.image, reinterpret_cast<A*>(shared + at.tables), kSweepThreads);
  A* const at_label = reinterpret_cast<A*>(shared + at.target);
  int32_t* const labels = reinterpret_cast<int32_t*>(shared + at.labels);
  A* const values = reinterpret_cast<A*>(shared + at.values);
  const T* const image = static_cast<const T*>(in.logits) + chunk.image * in.stride_n;
  T* const grad_image = static_cast<T*>(p.grad_logits) + chunk.image * p.grad_stride_n;
  const RowLayout layout(classes, sizeof(T));
  const bool stages = kRows && access.vector && staged_bytes<T, kRows>(in) > 0;
  BadData bad{0, 0, 0};

  for (int first = 0; first < chunk.count; first += kTile) {
    const int rest = chunk.count - first < kTile ? chunk.count - first : kTile;
    const T* const tile = image + (chunk.begin + first) * in.stride_s;
    T* const grad_tile = grad_image + (chunk.begin + first) * p.grad_stride_s;
    SYNC_THREADS();  // the tables are there, and the tile before has been read
    for (int v = warp; v < V; v += kSweepWarps) Pixels<A, V>::fetch(in, chunk, first, v, labels, values, bad);
    const bool through = stages && rest == kTile;
    if (through) stage(tile, shared + at.rows, layout, thread, kSweepThreads);
    unsigned char* const row = through ? shared + at.rows + lane_id() * layout.stride : nullptr;
    SYNC_THREADS();
    Pixels<A, V> pixels;
    pixels.take(labels, values, access.vector);

    Normaliser<T, V> softmax;
    A dot[V];
#pragma unroll
    for (int v = 0; v < V; ++v) dot[v] = 0;
    for_each_group(classes, [&](int c, int group) {
      Held<T, kGroup, V> held = load_group<T, kRows>(in, tile, c, group, rest, access.vector, row);
      held.clear_ignored(pixels.label, group);
      A most[V];
      held.largest(most);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A factor = softmax.raise(v, most[v]);
        dot[v] *= in.squared ? factor * factor : factor;
      }
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k >= group) break;
        const A g = tables.grad_p[c + k];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A x = held.x[k].get(v), e = exponential<T>(x - softmax.shift(v));
          softmax.sum[v] += e;
          dot[v] += in.squared ? 2 * g * e * e : g * e;
          if (pixels.label[v] == c + k) at_label[v * device::kWarp + lane_id()] = x;
        }
      }
    });
    softmax.merge(reinterpret_cast<A*>(shared + at.most), reinterpret_cast<A*>(shared + at.total),
                  reinterpret_cast<A*>(shared + at.dot), &dot, in.squared);
    A target[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool valid = pixels.label[v] >= 0;
      const A own = valid ? exponential<T>(at_label[v * device::kWarp + lane_id()] - softmax.most[v]) : A(0);
      const Coefficients<A> of(tables, in.squared, pixels.label[v], pixels.weight[v], softmax.sum[v], dot[v], own);
      softmax.sum[v] = of.inverse;
      dot[v] = of.u;
      target[v] = of.q;
    }
    for_each_group(classes, [&](int c, int group) {
      Held<T, kGroup, V> held = load_group<T, kRows>(in, tile, c, group, rest, access.vector, row);
      held.clear_ignored(pixels.label, group);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k >= group) break;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A e = exponential<T>(held.x[k].get(v) - softmax.most[v]);
          const Coefficients<A> of{softmax.sum[v], dot[v], target[v]};
          held.x[k].set(v, gradient(tables, of, in.squared, pixels.label[v], pixels.weight[v], c + k, e));
        }
        if constexpr (!kRows)
          held.store_plane(k, grad_tile + c * p.grad_stride_c, p.grad_stride_c, group, rest, access.vector);
        else if (through && !whole_pieces<T>(classes))
          reinterpret_cast<T*>(row)[c + k] = narrow<T>(held.x[k].get(0));
        else if (!through && lane_id() < rest)
          grad_tile[lane_id() * p.grad_stride_s + c + k] = narrow<T>(held.x[k].get(0));
      }
      if constexpr (kRows)
        if (through && whole_pieces<T>(classes))
          held.store_pieces(reinterpret_cast<uint4*>(reinterpret_cast<T*>(row) + c), group);
    });
    if (through) {
      SYNC_THREADS();  // all groups are there
      unstage(grad_tile, shared + at.rows, layout, thread, kSweepThreads);
    }
  }
}

template <class T, int K, bool kRows>
cudaError_t launch_held(const DiceCeLossBackward& p, const Plan& plan, const Access& access, cudaStream_t stream) {
  const BackwardShared<T, K, kRows> shared(p.in);
  const cudaError_t allowed = OPT_IN_SHARED((dice_ce_loss_backward_kernel<T, K, kRows>), shared.bytes);
  if (allowed != cudaSuccess) return allowed;
  return LAUNCH((dice_ce_loss_backward_kernel<T, K, kRows>), static_cast<unsigned>(p.in.batch * plan.chunks), kThreads<T>,
                shared.bytes, stream, p, plan, access);
}

template <class T, bool kRows>
cudaError_t launch_backward(const DiceCeLossBackward& p, const Plan& plan, const Access& access, cudaStream_t stream) {
  if (p.in.classes > kMostHeld) {
    const BackwardSweepShared<T, kRows> shared(p.in);
    const cudaError_t allowed = OPT_IN_SHARED((dice_ce_loss_backward_sweep_kernel<T, kRows>), shared.bytes);
    if (allowed != cudaSuccess) return allowed;
    return LAUNCH((dice_ce_loss_backward_sweep_kernel<T, kRows>), static_cast<unsigned>(p.in.batch * plan.chunks),
                  kSweepThreads, shared.bytes, stream, p, plan, access);
  }
  if constexpr (sizeof(T) < 8) {
    if (p.in.classes <= 8) return launch_held<T, 8, kRows>(p, plan, access, stream);
    if (p.in.classes <= 24) return launch_held<T, 24, kRows>(p, plan, access, stream);
  }
  return launch_held<T, 32, kRows>(p, plan, access, stream);
}

template <class T>
cudaError_t backward(const DiceCeLossBackward& p, cudaStream_t stream) {
  const Plan plan(p.in);
  const int64_t chunks = p.in.batch * plan.chunks;
  if (chunks > INT32_MAX || p.in.classes > kDiceCeLossMostClasses) return cudaErrorInvalidValue;
  if (chunks == 0) return cudaSuccess;
  const DiceCeLossInputs& in = p.in;
  const Access access{0,
                      Access::aligned(in.logits, sizeof(T), in.stride_n, in.stride_c, in.stride_s, in) &&
                          Access::aligned(p.grad_logits, sizeof(T), p.grad_stride_n, p.grad_stride_c, p.grad_stride_s, in)};
  return p.in.stride_s == 1 ? launch_backward<T, false>(p, plan, access, stream)
                            : launch_backward<T, true>(p, plan, access, stream);
}

}  // namespace segops::cuda::dice_ce

namespace segops::cuda {

Failure dice_ce_loss_backward(const DiceCeLossBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.in.logits_dtype, [&]<class T>(T) { return dice_ce::backward<T>(p, queue); }));
}

}  // namespace segops::cuda
