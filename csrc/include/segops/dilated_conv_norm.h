// Contract of the batch norm in training and the activation that follow a convolution. Of planar float32 images, on the CPU.
#pragma once
#include "segops/dilated_conv.h"

namespace segops {

// What the norm amounts to: image * scale + offset, by channel.
struct ConvNorm {
  const float* image;  // [batch, channels, pixels], what the convolution gave
  int64_t batch, channels, pixels;
  const float *weight, *bias;  // [channels]
  float *mean, *inverse;       // [channels], of the batch; inverse is 1 / sqrt(variance + eps)
  Activation activation;       // none, relu, leaky_relu, silu or sigmoid
};

// output = activation((image - mean) * inverse * weight + bias); mean, inverse and variance (biased) are computed first, or
// given if `variance` is null.
struct ConvNormForward {
  ConvNorm norm;
  double eps;
  float* variance;
  float* output;  // like image
};

struct ConvNormBackward {
  ConvNorm norm;
  const float* grad_output;  // like image
  float *grad_image, *grad_weight, *grad_bias;
};

}  // namespace segops
