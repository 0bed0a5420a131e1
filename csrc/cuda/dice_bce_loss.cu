// dice_bce_loss forward: one read of logits and labels gives all sums that the loss is made of.
//
// A block leaves the sums of its chunk, and dice_ce_loss_combine_kernel adds up the chunks in order.
#include "dice_bce_loss_lines.cuh"
#include "dice_bce_loss_sums.cuh"

namespace segops::cuda::dice_bce {
namespace {

using dice_ce::Partial;

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(kThreads, 2)
    dice_bce_loss_forward_kernel(DiceBceLossStatistics p, Cut cut, Partial partial) {
  using A = AccumulatorOf<T>;
  constexpr int U = kAhead<T, V>, K = Share<V, kRows>::kChannels;
  const DiceBceLossInputs& in = p.in;
  const Share<V, kRows> share(in, cut);
  const Constants<T> constant(in);
  const Elements map{p.bce_map, p.map_stride_n, p.map_stride_c, p.map_stride_s};
  const T* const logits = share.template first<T>(in.logits);
  A* const losses = share.template first<A>(map);
  const int64_t stride = share.stride(in.logits), map_stride = share.stride(map);

  A positive[K];
#pragma unroll
  for (int k = 0; k < K; ++k)
    positive[k] = in.pos_weight ? static_cast<A>(device::load(in.pos_weight + share.channel_of(k))) : A(1);
  A at_target[K] = {}, probs[K] = {}, targets[K] = {};
  A loss_sum = 0, weight_sum = 0;
  BadOfThread bad;

  for (int pass = 0; pass < cut.passes; pass += U) {
    const Rows<U> rows(share, pass);
    T x[U][V];
    A label[U][V], weight[U][V], loss[U][V];
    rows.load(logits, stride, x);
    load_weights(in, share, rows, weight);
    load_labels(in, share, rows, label,
                [&](int u, int v, int64_t value) { bad.record(share.position(in, rows.row[u], v), value); });
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int k = kRows ? v : 0;
        loss[u][v] = 0;
        if (!counts(label[u][v])) continue;
        const A t = label[u][v];
        const Sigmoid<T> of(widen<A>(x[u][v]));
        loss[u][v] = weight[u][v] * constant.loss(of, t, positive[k]);
        loss_sum += loss[u][v];
        weight_sum += weight[u][v];
        at_target[k] += of.prob * t;
        probs[k] += constant.squared ? of.prob * of.prob : of.prob;
        targets[k] += constant.squared ? t * t : t;
      }
    if (p.bce_map) rows.store(losses, map_stride, loss);
  }

  finish_cross_entropy<kThreads>(static_cast<double>(loss_sum), static_cast<double>(weight_sum), bad.all(), partial);
  if (!p.overlap) return;
  double* const out = partial.overlap + (share.image * cut.chunks + share.chunk) * 3 * in.channels;
  if constexpr (kRows) {
    SHARED_ARRAY(A, columns, 3 * V * kThreads);
    finish_channels<A, V>(at_target, probs, targets, share, columns, out);
  } else {
    SHARED_ARRAY(double, scratch, kWarps);
    const double sums[] = {static_cast<double>(at_target[0]), static_cast<double>(probs[0]),
                           static_cast<double>(targets[0])};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const double total = block_sum<kThreads>(sums[i], scratch);
      if (threadIdx.x == 0) out[i * in.channels + share.channel] = total;
    }
  }
}

template <class T, int V>
cudaError_t launch(const DiceBceLossStatistics& p, const Cut& cut, const Partial& partial, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(cut.blocks());
  if (cut.planar) return LAUNCH((dice_bce_loss_forward_kernel<T, V, false>), blocks, kThreads, 0, stream, p, cut, partial);
  return LAUNCH((dice_bce_loss_forward_kernel<T, V, true>), blocks, kThreads, 0, stream, p, cut, partial);
}

template <class T>
cudaError_t forward(const DiceBceLossStatistics& p, const Cut& cut, const Partial& partial, cudaStream_t stream) {
  if (cut.blocks() > INT32_MAX || p.in.channels > INT32_MAX / 2) return cudaErrorInvalidValue;
  if (cut.blocks() > 0) {
    const cudaError_t error =
        cut.vector ? launch<T, kVector<T>>(p, cut, partial, stream) : launch<T, 1>(p, cut, partial, stream);
    if (error != cudaSuccess) return error;
  }
  return dice_ce::combine({p.in.batch, p.in.channels, p.overlap, p.bce, p.bad_labels}, cut.chunks, cut.blocks(), partial,
                          stream);
}

Cut cut_of(const DiceBceLossStatistics& p) {
  return Cut(p.in, {p.bce_map, p.map_stride_n, p.map_stride_c, p.map_stride_s}, p.in.logits_dtype == Dtype::float64 ? 8 : 4);
}

}  // namespace
}  // namespace segops::cuda::dice_bce

namespace segops::cuda {

int64_t dice_bce_loss_scratch_bytes(const DiceBceLossStatistics& p) {
  const dice_bce::Cut cut = dice_bce::cut_of(p);
  return dice_ce::Partial::bytes(p.in.batch * cut.chunks, p.in.channels, cut.blocks());
}

Failure dice_bce_loss_statistics(const DiceBceLossStatistics& p, void* scratch, void* stream) {
  const dice_bce::Cut cut = dice_bce::cut_of(p);
  const dice_ce::Partial partial(scratch, cut.blocks());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (p.in.logits_dtype) {
    case Dtype::float32: return failure(dice_bce::forward<float>(p, cut, partial, queue));
    case Dtype::float64: return failure(dice_bce::forward<double>(p, cut, partial, queue));
    case Dtype::bfloat16: return failure(dice_bce::forward<__nv_bfloat16>(p, cut, partial, queue));
    default: return failure(dice_bce::forward<__half>(p, cut, partial, queue));
  }
}

}  // namespace segops::cuda
