// dice_bce_loss backward: one read of logits and labels, one write of the gradient.
#include "dice_bce_loss_pass.cuh"

namespace segops::cuda::dice_bce {
namespace {

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(kThreads, 2) dice_bce_loss_backward_kernel(DiceBceLossBackward p, Cut cut) {
  using A = AccumulatorOf<T>;
  using Pass = dice_bce::Pass<T, V, kRows>;
  constexpr int U = Pass::U, K = Share<V, kRows>::kChannels;
  const DiceBceLossInputs& in = p.in;
  const Share<V, kRows> share(in, cut);
  const Constants<T> constant(in);
  const Elements grad{p.grad_logits, p.grad_stride_n, p.grad_stride_c, p.grad_stride_s};

  using OfChannels = Staged<A, V, kRows, 3>;
  SHARED_ARRAY(A, of_channels, OfChannels::kExtent);
  SHARED_ARRAY(A, of_losses, 1);
  SHARED_ARRAY(uint4, rooms, Pass::kRooms);
  const OfChannels staged(share, of_channels, [&](int channel, A(&of)[3]) {
    const Slopes<A> slopes = slopes_of<A>(p, share.image, channel);
    of[0] = slopes.i, of[1] = slopes.p, of[2] = slopes.q;
  });
  if (threadIdx.x == 0) of_losses[0] = p.grad_bce ? static_cast<A>(device::load(p.grad_bce)) : A(0);
  SYNC_THREADS();
  const A bce = of_losses[0];
  Slopes<A> slopes[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int own = share.own_of(k);
    slopes[k] = {staged.at(0, own), staged.at(1, own), staged.at(2, own)};
  }

  for (int pass = 0; pass < cut.passes; pass += U) {
    const Pass rows(in, share, pass, rooms);
    T x[U][V];
    A label[U][V], weight[U][V];
    rows.load_logits(in, share, x);
    rows.load_weights(in, share, weight);
    rows.load_labels(in, share, label, [](int, int, int64_t) {});  // forward has told of bad ones
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A result = 0;
        if (counts(label[u][v]))
          result = gradient(constant, widen<A>(x[u][v]), label[u][v], weight[u][v], bce, slopes[kRows ? v : 0]);
        x[u][v] = narrow<T>(result);
      }
    rows.store(share, grad, x);
  }
}

template <class T>
cudaError_t backward(const DiceBceLossBackward& p, cudaStream_t stream) {
  const Cut cut(p.in, {p.grad_logits, p.grad_stride_n, p.grad_stride_c, p.grad_stride_s}, sizeof(T));
  if (cut.blocks() > INT32_MAX || p.in.channels > INT32_MAX / 2) return cudaErrorInvalidValue;
  if (cut.blocks() == 0) return cudaSuccess;
  return with_template<T>(cut, [&](auto vector, auto rows) {
    return LAUNCH((dice_bce_loss_backward_kernel<T, decltype(vector)::value, decltype(rows)::value>),
                  static_cast<unsigned>(cut.blocks()), cut.threads(), 0, stream, p, cut);
  });
}

}  // namespace
}  // namespace segops::cuda::dice_bce

namespace segops::cuda {

Failure dice_bce_loss_backward(const DiceBceLossBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return failure(as_float(p.in.logits_dtype, [&]<class T>(T) { return dice_bce::backward<T>(p, queue); }));
}

}  // namespace segops::cuda
