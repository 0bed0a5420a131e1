// dilated_conv2d_grad_weight: sums over the pixels of all images, in an order that depends on the shapes alone.
#include "dilated_conv.cuh"
#include "reduce.cuh"

namespace segops::cuda {
namespace {

constexpr int kSumThreads = 256;

// A block sums one weight: for float64, and groups of few channels.
template <class T>
__global__ void __launch_bounds__(kSumThreads, 1) dilated_conv_grad_weight_direct_kernel(DilatedConvGradWeight p) {
  using A = AccumulatorOf<T>;
  SHARED_ARRAY(A, scratch, kSumThreads / device::kWarp);
  const unsigned kernel_w = static_cast<unsigned>(p.window.kernel_w);
  const unsigned taps = static_cast<unsigned>(p.window.kernel_h) * kernel_w;
  const unsigned per_group = static_cast<unsigned>(p.input.channels / p.groups);
  const unsigned tap = blockIdx.x % taps, pair = blockIdx.x / taps, c = pair % per_group, out = pair / per_group;
  const unsigned group = out / static_cast<unsigned>(p.grad_output.channels / p.groups);
  const int64_t from_y = (tap / kernel_w) * p.window.dilation_h - p.window.padding_h;
  const int64_t from_x = (tap % kernel_w) * p.window.dilation_w - p.window.padding_w;
  const T* const plane = static_cast<const T*>(p.input.data) + (group * per_group + c) * p.input.stride_c;
  const T* const gradient = static_cast<const T*>(p.grad_output.data) + out * p.grad_output.stride_c;

  const unsigned width = static_cast<unsigned>(p.grad_output.width), height = static_cast<unsigned>(p.grad_output.height);
  A sum = 0;
  for (int64_t n = 0; n < p.grad_output.batch; ++n) {
    for (unsigned i = threadIdx.x; i < width * height; i += kSumThreads) {
      const int64_t oy = i / width, ox = i % width;
      const int64_t y = oy * p.window.stride_h + from_y, x = ox * p.window.stride_w + from_x;
      if (y < 0 || y >= p.input.height || x < 0 || x >= p.input.width) continue;
      sum += widen<A>(device::load(plane + n * p.input.stride_n + y * p.input.stride_h + x * p.input.stride_w)) *
             widen<A>(device::load(gradient + n * p.grad_output.stride_n + oy * p.grad_output.stride_h +
                                   ox * p.grad_output.stride_w));
    }
  }
  const A total = block_sum<kSumThreads>(sum, scratch);
  if (threadIdx.x == 0) static_cast<T*>(p.grad_weight)[blockIdx.x] = narrow<T>(total);
}

template <class T>
cudaError_t direct(const DilatedConvGradWeight& p, cudaStream_t stream) {
  const int64_t weights = p.grad_output.channels * (p.input.channels / p.groups) * p.window.kernel_h * p.window.kernel_w;
  if (weights == 0) return cudaSuccess;
  if (weights > INT32_MAX || p.grad_output.height * p.grad_output.width > INT32_MAX) return cudaErrorInvalidValue;
  return LAUNCH(dilated_conv_grad_weight_direct_kernel<T>, static_cast<unsigned>(weights), kSumThreads, 0, stream, p);
}

}  // namespace

int64_t dilated_conv2d_grad_weight_scratch_bytes(const DilatedConvGradWeight&) { return 0; }

Failure dilated_conv2d_grad_weight(const DilatedConvGradWeight& p, void*, void* stream) {
  if (!conv_axes_fit(p.window, p.input.height, p.input.width)) return failure(cudaErrorInvalidValue);
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case Dtype::float32: return failure(direct<float>(p, queue));
    case Dtype::float64: return failure(direct<double>(p, queue));
    case Dtype::bfloat16: return failure(direct<__nv_bfloat16>(p, queue));
    default: return failure(direct<__half>(p, queue));
  }
}

}  // namespace segops::cuda
