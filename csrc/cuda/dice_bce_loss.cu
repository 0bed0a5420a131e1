// dice_bce_loss forward: one read of logits and labels gives all sums that the loss is made of.
//
// A block leaves the sums of its chunk, and dice_ce_loss_combine_kernel adds up the chunks in order.
#include "dice_bce_loss_pass.cuh"
#include "dice_bce_loss_sums.cuh"

namespace segops::cuda::dice_bce {
namespace {

using dice_ce::Partial;

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(kThreads, 2)
    dice_bce_loss_forward_kernel(DiceBceLossStatistics p, Cut cut, Partial partial) {
  using A = AccumulatorOf<T>;
  using Pass = dice_bce::Pass<T, V, kRows>;
  constexpr int U = Pass::U, K = Share<V, kRows>::kChannels;
  const DiceBceLossInputs& in = p.in;
  const Share<V, kRows> share(in, cut);
  const Constants<T> constant(in);
  const Elements map{p.bce_map, p.map_stride_n, p.map_stride_c, p.map_stride_s};

  using Positives = Staged<A, V, kRows, 1>;
  SHARED_ARRAY(A, positives, Positives::kExtent);
  const Positives staged(share, positives, [&](int channel, A(&of)[1]) {
    of[0] = in.pos_weight ? static_cast<A>(device::load(in.pos_weight + channel)) : A(1);
  });
  SYNC_THREADS();
  A positive[K];
#pragma unroll
  for (int k = 0; k < K; ++k) positive[k] = staged.at(0, share.own_of(k));

  constexpr int kSums = 3 * K + 2;  // I, P and T of each channel, cross-entropy and its weight
  SHARED_ARRAY(A, columns, kSums * kColumnPitch<V>);
  const auto column = [&](int i) -> A& { return columns[i * kColumnPitch<V> + static_cast<int>(threadIdx.x)]; };
  SHARED_ARRAY(uint4, rooms, Pass::kRooms);
  BadOfThread bad;

  constexpr int kSummed = Cut::kMostSummed / V;
  for (int begin = 0; begin < cut.passes; begin += kSummed) {
    A sums[kSums] = {};
    const int end = cut.passes - begin < kSummed ? cut.passes : begin + kSummed;
    for (int pass = begin; pass < end; pass += U) {
      const Pass rows(in, share, pass, rooms);
      T x[U][V];
      A label[U][V], weight[U][V], loss[U][V];
      rows.load_logits(in, share, x);
      rows.load_weights(in, share, weight);
      rows.load_labels(in, share, label,
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
          sums[3 * K] += loss[u][v];
          sums[3 * K + 1] += weight[u][v];
          sums[k] += of.prob * t;
          sums[K + k] += constant.squared ? of.prob * of.prob : of.prob;
          sums[2 * K + k] += constant.squared ? t * t : t;
        }
      if (!kNarrow<V> && p.bce_map) rows.store(share, map, loss);
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) column(i) = begin > 0 ? column(i) + sums[i] : sums[i];
  }

  // Its barrier is that of `columns`, too.
  finish_cross_entropy<kThreads>(static_cast<double>(column(3 * K)), static_cast<double>(column(3 * K + 1)), bad.all(),
                                 partial);
  if (!p.overlap) return;
  double* const out = partial.overlap + share.sums() * 3 * in.channels;
  if constexpr (kRows) {
    finish_channels<A, V>(columns, share, out);
  } else {
    SHARED_ARRAY(double, scratch, kWarps);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const double total = block_sum<kThreads>(static_cast<double>(column(i)), scratch);
      if (threadIdx.x == 0) out[i * in.channels + share.channel] = total;
    }
  }
}

template <class T>
cudaError_t forward(const DiceBceLossStatistics& p, const Cut& cut, const Partial& partial, cudaStream_t stream) {
  if (cut.blocks() > INT32_MAX || p.in.channels > INT32_MAX / 2) return cudaErrorInvalidValue;
  const auto launch = [&](auto vector, auto rows) {
    return LAUNCH((dice_bce_loss_forward_kernel<T, decltype(vector)::value, decltype(rows)::value>),
                  static_cast<unsigned>(cut.blocks()), cut.threads(), 0, stream, p, cut, partial);
  };
  if (cut.blocks() > 0) {
    const cudaError_t error = with_template<T>(cut, launch);
    if (error != cudaSuccess) return error;
  }
  return dice_ce::combine({p.in.batch, p.in.channels, p.overlap, p.bce, p.bad_labels}, cut.sums_of_image(), cut.blocks(),
                          partial, stream);
}

Cut cut_of(const DiceBceLossStatistics& p) {
  return Cut(p.in, {p.bce_map, p.map_stride_n, p.map_stride_c, p.map_stride_s}, accumulator_bytes(p.in.logits_dtype));
}

}  // namespace
}  // namespace segops::cuda::dice_bce

namespace segops::cuda {

int64_t dice_bce_loss_scratch_bytes(const DiceBceLossStatistics& p) {
  const dice_bce::Cut cut = dice_bce::cut_of(p);
  return dice_ce::Partial::bytes(p.in.batch * cut.sums_of_image(), p.in.channels, cut.blocks());
}

Failure dice_bce_loss_statistics(const DiceBceLossStatistics& p, void* scratch, void* stream) {
  const dice_bce::Cut cut = dice_bce::cut_of(p);
  const dice_ce::Partial partial(scratch, cut.blocks());
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.in.logits_dtype, [&]<class T>(T) { return dice_bce::forward<T>(p, cut, partial, queue); }));
}

}  // namespace segops::cuda
