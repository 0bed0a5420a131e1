// Binding of the norm that follows a convolution in training, of the CPU alone; segops/nn/norm_act.py calls it.
#include "segops/dilated_conv_norm.h"

#include <tuple>

#include "tensor.h"

namespace segops {
Status dilated_conv2d_norm(const ConvNormForward&, const Parallel&);
Status dilated_conv2d_norm_backward(const ConvNormBackward&, const Parallel&);
}  // namespace segops

namespace segops::binding {
namespace {

constexpr const char* kNorm = "dilated_conv2d_norm";

void check_floats(const Tensor& t, const std::vector<int64_t>& sizes, const char* name) {
  check(t.is_cpu() && t.scalar_type() == ScalarType::Float && t.is_contiguous() && sizes_of(t) == sizes, "segops.", kNorm,
        ": ", name, " must be contiguous float32 ", to_text(sizes), " on the CPU, got ", to_text(t));
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }
float* floats_of(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// The vectors of the batch are written by forward alone.
ConvNorm norm_of(const Tensor& image, const Tensor& weight, const Tensor& bias, Tensor& mean, Tensor& inverse,
                 int64_t activation) {
  check(image.dim() == 4 && image.numel() > 0, "segops.", kNorm, ": image must be [N, C, H, W] with pixels, got ",
        to_text(image));
  check_floats(image, sizes_of(image), "image");
  const std::vector<int64_t> channels{image.size(1)};
  check_floats(weight, channels, "weight");
  check_floats(bias, channels, "bias");
  check_floats(mean, channels, "mean");
  check_floats(inverse, channels, "inverse");
  check(activation >= 0 && activation < static_cast<int64_t>(Activation::prelu), "segops.", kNorm,
        ": activation must be in 0 .. ", static_cast<int64_t>(Activation::prelu) - 1, ", got ", activation);
  return {floats(image), image.size(0),   image.size(1),      image.size(2) * image.size(3),      floats(weight),
          floats(bias),  floats_of(mean), floats_of(inverse), static_cast<Activation>(activation)};
}

Tensor vector_like(const Tensor& image) { return empty({image.dim() == 4 ? image.size(1) : 0}, ScalarType::Float, image); }

std::tuple<Tensor, Tensor, Tensor, Tensor> norm(const Tensor& image, const Tensor& weight, const Tensor& bias, double eps,
                                                int64_t activation) {
  Tensor mean = vector_like(image), inverse = vector_like(image), variance = vector_like(image);
  const ConvNorm p = norm_of(image, weight, bias, mean, inverse, activation);
  Tensor output = empty(sizes_of(image), ScalarType::Float, image);
  check(dilated_conv2d_norm({p, eps, floats_of(variance), floats_of(output)}, threads()), kNorm);
  return {output, mean, inverse, variance};
}

Tensor norm_again(const Tensor& image, const Tensor& weight, const Tensor& bias, Tensor mean, Tensor inverse,
                  int64_t activation) {
  const ConvNorm p = norm_of(image, weight, bias, mean, inverse, activation);
  Tensor output = empty(sizes_of(image), ScalarType::Float, image);
  check(dilated_conv2d_norm({p, 0.0, nullptr, floats_of(output)}, threads()), kNorm);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& grad_output, const Tensor& image, const Tensor& weight,
                                                 const Tensor& bias, Tensor mean, Tensor inverse, int64_t activation) {
  const ConvNorm p = norm_of(image, weight, bias, mean, inverse, activation);
  check_floats(grad_output, sizes_of(image), "grad_output");
  Tensor grad_image = empty(sizes_of(image), ScalarType::Float, image);
  Tensor grad_weight = vector_like(image), grad_bias = vector_like(image);
  const ConvNormBackward q{p, floats(grad_output), floats_of(grad_image), floats_of(grad_weight), floats_of(grad_bias)};
  check(dilated_conv2d_norm_backward(q, threads()), kNorm);
  return {grad_image, grad_weight, grad_bias};
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(segops, CPU, m) {
  m.impl("dilated_conv2d_norm", TORCH_BOX(&segops::binding::norm));
  m.impl("dilated_conv2d_norm_again", TORCH_BOX(&segops::binding::norm_again));
  m.impl("dilated_conv2d_norm_backward", TORCH_BOX(&segops::binding::norm_backward));
}
