// Contract of dilated_conv: a two-dimensional convolution and what follows it, written once:
//   output = activation(scale * (conv(input, weight) + bias) + shift + residual)
#pragma once
#include "segops/planes.h"
#include "segops/types.h"

namespace segops {

struct ConvWindow {
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

enum class Activation : int32_t { none, relu, leaky_relu, silu, sigmoid, prelu };
constexpr double kLeakySlope = 0.01;

// Vectors are in the accumulation type (double for float64, else float), or null where there is none.
struct ConvEpilogue {
  const void *bias, *scale, *shift;  // [C_out]
  const void* slope;                 // [C_out], of prelu
  Activation activation;
  ConstPlanes residual;  // dtype and shape of the output, planar or channels last; null data for none
};

// fast: the looser bound of precision="fast" is allowed (Winograd F(4x4) on a CPU, TF32 on CUDA).
struct DilatedConv {
  Dtype dtype;
  ConstPlanes input;   // [N, C_in, H, W]
  const void* weight;  // [C_out, C_in / groups, kernel_h, kernel_w], contiguous
  ConvWindow window;
  int64_t groups;
  ConvEpilogue epilogue;
  Planes output;  // [N, C_out, H', W']
  bool fast;
};

// The gradient of the input of a convolution without epilogue.
struct DilatedConvGradInput {
  Dtype dtype;
  ConstPlanes grad_output;
  const void* weight;
  ConvWindow window;
  int64_t groups;
  Planes grad_input;
  bool fast;
};

// The gradient of its weight; summed in an order that depends on the shapes alone.
struct DilatedConvGradWeight {
  Dtype dtype;
  ConstPlanes input, grad_output;
  ConvWindow window;
  int64_t groups;
  void* grad_weight;  // like weight
  bool fast;
};

// What follows a convolution that was computed elsewhere, in the accumulation type; output may be where it is. CPU only.
struct DilatedConvFinish {
  Dtype dtype;  // of the output
  ConstPlanes convolved;
  ConvEpilogue epilogue;
  Planes output;
};

}  // namespace segops
