// dice_bce_loss backward: one read of logits and labels, one write of the gradient.
#include "dice_bce_loss_lines.cuh"

namespace segops::cuda::dice_bce {
namespace {

template <class T, int V, bool kRows>
__global__ void __launch_bounds__(kThreads, 2) dice_bce_loss_backward_kernel(DiceBceLossBackward p, Cut cut) {
  using A = AccumulatorOf<T>;
  constexpr int U = kAhead<T, V>, K = Share<V, kRows>::kChannels;
  const DiceBceLossInputs& in = p.in;
  const Share<V, kRows> share(in, cut);
  const Constants<T> constant(in);
  const Elements grad{p.grad_logits, p.grad_stride_n, p.grad_stride_c, p.grad_stride_s};
  const T* const logits = share.template first<T>(in.logits);
  T* const grads = share.template first<T>(grad);
  const int64_t stride = share.stride(in.logits), grad_stride = share.stride(grad);

  const A bce = p.grad_bce ? static_cast<A>(device::load(p.grad_bce)) : A(0);
  Slopes<A> slopes[K];
#pragma unroll
  for (int k = 0; k < K; ++k) slopes[k] = slopes_of<A>(p, share.image, share.channel_of(k));

  for (int pass = 0; pass < cut.passes; pass += U) {
    const Rows<U> rows(share, pass);
    T x[U][V];
    A label[U][V], weight[U][V];
    rows.load(logits, stride, x);
    load_weights(in, share, rows, weight);
    load_labels(in, share, rows, label, [](int, int, int64_t) {});  // forward has told of bad ones
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        A result = 0;
        if (counts(label[u][v]))
          result = gradient(constant, widen<A>(x[u][v]), label[u][v], weight[u][v], bce, slopes[kRows ? v : 0]);
        x[u][v] = narrow<T>(result);
      }
    rows.store(grads, grad_stride, x);
  }
}

template <class T, int V>
cudaError_t launch(const DiceBceLossBackward& p, const Cut& cut, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(cut.blocks());
  if (cut.planar) return LAUNCH((dice_bce_loss_backward_kernel<T, V, false>), blocks, kThreads, 0, stream, p, cut);
  return LAUNCH((dice_bce_loss_backward_kernel<T, V, true>), blocks, kThreads, 0, stream, p, cut);
}

template <class T>
cudaError_t backward(const DiceBceLossBackward& p, cudaStream_t stream) {
  const Cut cut(p.in, {p.grad_logits, p.grad_stride_n, p.grad_stride_c, p.grad_stride_s}, sizeof(T));
  if (cut.blocks() > INT32_MAX || p.in.channels > INT32_MAX / 2) return cudaErrorInvalidValue;
  if (cut.blocks() == 0) return cudaSuccess;
  return cut.vector ? launch<T, kVector<T>>(p, cut, stream) : launch<T, 1>(p, cut, stream);
}

}  // namespace
}  // namespace segops::cuda::dice_bce

namespace segops::cuda {

Failure dice_bce_loss_backward(const DiceBceLossBackward& p, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (p.in.logits_dtype) {
    case Dtype::float32: return failure(dice_bce::backward<float>(p, queue));
    case Dtype::float64: return failure(dice_bce::backward<double>(p, queue));
    case Dtype::bfloat16: return failure(dice_bce::backward<__nv_bfloat16>(p, queue));
    default: return failure(dice_bce::backward<__half>(p, queue));
  }
}

}  // namespace segops::cuda
