// dilated_conv2d, and the kernel for groups of few channels (depthwise) and for float64: a thread owns destinations and
// gathers what they sum.
#include "dilated_conv.cuh"

namespace segops::cuda {
namespace {

constexpr int kDirectRows = 4;  // destinations of a thread, one below the other: they share each weight

// The source that destination i reads at tap k, or one that is outside.
__device__ __forceinline__ int source_of(const ConvAxis& axis, bool transposed, int i, int k) {
  if (!transposed) return i * axis.stride - axis.padding + k * axis.dilation;
  const int at = i + axis.padding - k * axis.dilation;
  if (axis.stride == 1 || at < 0) return at;
  const unsigned source = static_cast<unsigned>(at) / static_cast<unsigned>(axis.stride);
  return source * static_cast<unsigned>(axis.stride) == static_cast<unsigned>(at) ? static_cast<int>(source) : -1;
}

// V channels of a pixel, of one channel a group; or one element of any layout.
template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, 2) dilated_conv_direct_kernel(Convolution p, Tiling tiling) {
  using A = AccumulatorOf<T>;
  const Place place(tiling, V);
  if (!place.active) return;
  const int group = static_cast<int>(static_cast<unsigned>(place.channel) / static_cast<unsigned>(p.destination_channels));
  const int own = place.channel - group * p.destination_channels;
  const T* const image = static_cast<const T*>(p.source.data) + place.image * p.source.stride_n;
  const T* const weight = static_cast<const T*>(p.weight);

  A sum[kDirectRows][V] = {};
  for (int c = 0; c < p.source_channels; ++c) {
    const T* const plane = image + (static_cast<int64_t>(group) * p.source_channels + c) * p.source.stride_c;
    for (int ky = 0; ky < p.vertical.kernel; ++ky) {
      int64_t row[kDirectRows];
#pragma unroll
      for (int r = 0; r < kDirectRows; ++r) {
        const int y = source_of(p.vertical, p.transposed, place.row + r, ky);
        row[r] = r < place.rows && y >= 0 && y < p.vertical.source ? y * p.source.stride_h : -1;
      }
      for (int kx = 0; kx < p.horizontal.kernel; ++kx) {
        const int x = source_of(p.horizontal, p.transposed, place.column, kx);
        if (x < 0 || x >= p.horizontal.source) continue;
        const int64_t column = x * p.source.stride_w;
        A w[V];
#pragma unroll
        for (int v = 0; v < V; ++v)
          w[v] = widen<A>(device::load(weight + p.weight_at(group + v, own, c) + ky * p.horizontal.kernel + kx));
#pragma unroll
        for (int r = 0; r < kDirectRows; ++r) {
          if (row[r] < 0) continue;
          T value[V];
          load_vector(plane + row[r] + column, value);
#pragma unroll
          for (int v = 0; v < V; ++v) sum[r][v] += w[v] * widen<A>(value[v]);
        }
      }
    }
  }

  ChannelEpilogue<A> channel[V];
#pragma unroll
  for (int v = 0; v < V; ++v) channel[v] = ChannelEpilogue<A>(p.epilogue, place.channel + v);
  const ConstPlanes& residual = p.epilogue.residual;
  const T* const added = static_cast<const T*>(residual.data);
#pragma unroll
  for (int r = 0; r < kDirectRows; ++r) {
    if (r >= place.rows) continue;
    T out[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A beside =
          added ? widen<A>(device::load(added + place.image * residual.stride_n + (place.channel + v) * residual.stride_c +
                                        (place.row + r) * residual.stride_h + place.column * residual.stride_w))
                : A(0);
      out[v] = narrow<T>(finished<T>(p.epilogue, channel[v], sum[r][v], beside));
    }
    store_vector(
        place.begin<T>(p.destination) + (place.row + r) * p.destination.stride_h + place.column * p.destination.stride_w,
        out);
  }
}

template <class T, int V>
cudaError_t launch_direct(const Convolution& p, cudaStream_t stream) {
  Tiling tiling(p.destination, V, V > 1 || !is_planar(p.destination), kDirectRows);
  if (!tiling.fits()) return cudaErrorInvalidValue;
  return LAUNCH((dilated_conv_direct_kernel<T, V>), tiling.grid(), tiling.threads(), 0, stream, p, tiling);
}

template <class T>
cudaError_t direct(const Convolution& p, cudaStream_t stream) {
  const bool depthwise = p.source_channels == 1 && p.destination_channels == 1;
  if (depthwise && vectors_fit(p.destination, sizeof(T), false) && vectors_fit(p.source, sizeof(T), false))
    return launch_direct<T, kVector<T>>(p, stream);
  return launch_direct<T, 1>(p, stream);
}

bool has_many_channels(const Convolution& p) { return fills_tiles(p.dtype, p.source_channels, p.destination_channels); }

}  // namespace

int64_t convolve_scratch_bytes(const Convolution& p) { return has_many_channels(p) ? gemm_scratch_bytes(p) : 0; }

cudaError_t convolve(const Convolution& p, void* scratch, cudaStream_t stream) {
  if (is_empty(p.destination)) return cudaSuccess;
  if (has_many_channels(p)) return gemm(p, scratch, stream);
  return as_float(p.dtype, [&]<class T>(T) { return direct<T>(p, stream); });
}

namespace {

Convolution forward(const DilatedConv& p) {
  Convolution c = convolution(p.dtype, p.input, p.weight, p.output, p.window, p.groups, false, p.fast);
  c.epilogue = p.epilogue;
  return c;
}

}  // namespace

int64_t dilated_conv2d_scratch_bytes(const DilatedConv& p) { return convolve_scratch_bytes(forward(p)); }

Failure dilated_conv2d(const DilatedConv& p, void* scratch, void* stream) {
  if (!conv_axes_fit(p.window, p.input.height, p.input.width)) return failure(cudaErrorInvalidValue);
  return failure(convolve(forward(p), scratch, static_cast<cudaStream_t>(stream)));
}

}  // namespace segops::cuda
