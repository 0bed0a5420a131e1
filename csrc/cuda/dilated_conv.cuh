// A convolution as its kernels see it: forward, and transposed, which is the gradient of the input.
//
// A destination is a sum over taps and source channels. Forward, destination i of an axis and tap k read source
// i * stride - padding + k * dilation; transposed, source (i + padding - k * dilation) / stride where that is whole.
#pragma once
#include "planes.cuh"
#include "segops/dilated_conv.h"

namespace segops::cuda {

struct ConvAxis {
  int out, source, kernel, stride, padding, dilation;
};

struct Convolution {
  Dtype dtype;
  ConstPlanes source;
  const void* weight;  // the operator's: forward [destination, source, taps] in each group, transposed with these swapped
  Planes destination;
  ConvAxis vertical, horizontal;
  int groups, source_channels, destination_channels;  // channels of a group
  bool transposed, fast;
  ConvEpilogue epilogue;

  SEGOPS_HOST_DEVICE int taps() const { return vertical.kernel * horizontal.kernel; }
  // Where the weights of a destination and a source channel of a group lie.
  SEGOPS_HOST_DEVICE int64_t weight_at(int group, int destination, int source) const {
    const int64_t rows = transposed ? source_channels : destination_channels;
    const int64_t columns = transposed ? destination_channels : source_channels;
    const int row = transposed ? source : destination, column = transposed ? destination : source;
    return ((group * rows + row) * columns + column) * taps();
  }
};

// Whether positions on the axes can be told in 32 bits.
inline bool conv_axes_fit(const ConvWindow& w, int64_t height, int64_t width) {
  const auto fits = [](int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t extent) {
    constexpr int64_t kMost = INT32_MAX / 4;
    return kernel <= kMost && stride <= kMost && padding <= kMost && extent <= kMost && dilation <= kMost &&
           (kernel - 1) * dilation <= kMost;
  };
  return fits(w.kernel_h, w.stride_h, w.padding_h, w.dilation_h, height) &&
         fits(w.kernel_w, w.stride_w, w.padding_w, w.dilation_w, width) && w.kernel_h * w.kernel_w <= INT32_MAX;
}

// Whether channels of a group are enough for tiles of a product, which are as wide as 64 of them.
inline bool fills_tiles(Dtype dtype, int64_t source_channels, int64_t destination_channels) {
  return dtype != Dtype::float64 && source_channels * destination_channels >= 16;
}

// Without an epilogue.
inline Convolution convolution(Dtype dtype, const ConstPlanes& source, const void* weight, const Planes& destination,
                               const ConvWindow& w, int64_t groups, bool transposed, bool fast) {
  const auto axis = [](int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    return ConvAxis{static_cast<int>(out),    static_cast<int>(in),      static_cast<int>(kernel),
                    static_cast<int>(stride), static_cast<int>(padding), static_cast<int>(dilation)};
  };
  Convolution c{};
  c.dtype = dtype;
  c.source = source;
  c.weight = weight;
  c.destination = destination;
  c.vertical = axis(destination.height, source.height, w.kernel_h, w.stride_h, w.padding_h, w.dilation_h);
  c.horizontal = axis(destination.width, source.width, w.kernel_w, w.stride_w, w.padding_w, w.dilation_w);
  c.groups = static_cast<int>(groups);
  c.source_channels = static_cast<int>(source.channels / groups);
  c.destination_channels = static_cast<int>(destination.channels / groups);
  c.transposed = transposed;
  c.fast = fast;
  return c;
}

template <class Data>
bool is_empty(const PlanesOf<Data>& planes) {
  return planes.batch == 0 || planes.channels == 0 || planes.height == 0 || planes.width == 0;
}

// Chooses the kernel; in dilated_conv.cu.
int64_t convolve_scratch_bytes(const Convolution& p);
cudaError_t convolve(const Convolution& p, void* scratch, cudaStream_t stream);
// For all but float64, as a product of matrices; in dilated_conv_gemm.cu.
int64_t gemm_scratch_bytes(const Convolution& p);
cudaError_t gemm(const Convolution& p, void* scratch, cudaStream_t stream);

// What the epilogue makes of one channel.
template <class A>
struct ChannelEpilogue {
  A scale, add, slope;

  ChannelEpilogue() = default;
  __device__ __forceinline__ ChannelEpilogue(const ConvEpilogue& of, int channel) {
    const auto get = [&](const void* vector, A otherwise) {
      return vector ? device::load(static_cast<const A*>(vector) + channel) : otherwise;
    };
    scale = get(of.scale, A(1));
    add = get(of.bias, A(0)) * scale + get(of.shift, A(0));
    slope = get(of.slope, A(kLeakySlope));
  }
};

// T: whose precision is enough.
template <class T, class A>
__device__ __forceinline__ A activated(Activation activation, A x, A slope) {
  switch (activation) {
    case Activation::relu: return x < A(0) ? A(0) : x;
    case Activation::leaky_relu:
    case Activation::prelu: return x > A(0) ? x : slope * x;
    case Activation::silu: return x * (A(1) / (A(1) + exponential<T>(-x)));
    case Activation::sigmoid: return A(1) / (A(1) + exponential<T>(-x));
    default: return x;
  }
}

template <class T, class A>
__device__ __forceinline__ A finished(const ConvEpilogue& epilogue, const ChannelEpilogue<A>& channel, A sum, A residual) {
  return activated<T>(epilogue.activation, sum * channel.scale + channel.add + residual, channel.slope);
}

}  // namespace segops::cuda
