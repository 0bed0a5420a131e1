// dilated_conv2d and its gradients: right for every shape by dilated_conv_direct.h, fast where Winograd's algorithm applies.
#include "segops/dilated_conv.h"

#include "dilated_conv_method.h"
#include "dilated_conv_norm.h"
#include "dilated_conv_single.h"
#include "dilated_conv_winograd.h"
#include "dtypes.h"
#include "isa.h"

namespace segops::SEGOPS_ISA {
namespace {

template <class In>
Status winograd(const DilatedConv& p, const WeightView& weight, const Parallel& parallel) {
  if (p.fast) return Winograd<F4, In>(p, weight, parallel.workers).run(parallel);
  return Winograd<F2, In>(p, weight, parallel.workers).run(parallel);
}

WeightView weight_of(const DilatedConv& p) { return {p.weight, p.input.channels * 9, 9, false}; }

}  // namespace

Status dilated_conv2d(const DilatedConv& p, const Parallel& parallel) {
  if (p.output.batch == 0) return Status::ok;
  return as_float(p.dtype, [&]<class T, class In>() {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (is_single(p.window, p.groups, p.output.channels)) return SingleConv<In>(p).run(parallel);
      if (winograd_applies(p.window, p.groups)) return winograd<In>(p, weight_of(p), parallel);
    }
    return convolve<T, In>(p, parallel);
  });
}

Status dilated_conv2d_prepacked(const DilatedConvPrepacked& p, const Parallel& parallel) {
  return as_float(p.conv.dtype, [&]<class T, class In>() {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (p.conv.fast)
        return Winograd<F4, In>(p.conv, weight_of(p.conv), parallel.workers).run_prepacked(parallel, p.prepacked);
      return Winograd<F2, In>(p.conv, weight_of(p.conv), parallel.workers).run_prepacked(parallel, p.prepacked);
    }
    return Status::unsupported;
  });
}

Status dilated_conv2d_prepack(const DilatedConvPrepack& p, const Parallel& parallel) {
  DilatedConv conv{};
  conv.weight = p.weight;
  conv.window = {3, 3, 1, 1, 1, 1, 1, 1};
  conv.input.channels = p.inputs;
  conv.output = {nullptr, 1, p.outputs, 1, 1, 0, 0, 0, 0};
  return as_float(p.dtype, [&]<class T, class In>() {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (p.fast)
        Winograd<F4, In>(conv, weight_of(conv), parallel.workers).prepack(parallel, p.prepacked);
      else
        Winograd<F2, In>(conv, weight_of(conv), parallel.workers).prepack(parallel, p.prepacked);
      return Status::ok;
    }
    return Status::unsupported;
  });
}

Status dilated_conv2d_finish(const DilatedConvFinish& p, const Parallel& parallel) {
  return as_float(p.dtype, [&]<class T, class In>() { return finish_image<T, In>(p, parallel); });
}

// The gradient of the input is a convolution of that of the output, by the weights the other way round.
Status dilated_conv2d_grad_input(const DilatedConvGradInput& p, const Parallel& parallel) {
  if (p.grad_input.batch == 0) return Status::ok;
  return as_float(p.dtype, [&]<class T, class In>() {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (winograd_applies(p.window, p.groups)) {
        DilatedConv transposed{p.dtype, p.grad_output, p.weight, p.window, 1, {}, p.grad_input, p.fast};
        transposed.window.padding_h = 2 * p.window.dilation_h - p.window.padding_h;
        transposed.window.padding_w = 2 * p.window.dilation_w - p.window.padding_w;
        return winograd<In>(transposed, {p.weight, 9, p.grad_input.channels * 9, true}, parallel);
      }
    }
    return convolve_grad_input<T, In>(p, parallel);
  });
}

Status dilated_conv2d_grad_weight(const DilatedConvGradWeight& p, const Parallel& parallel) {
  return as_float(p.dtype, [&]<class T, class In>() { return convolve_grad_weight<T, In>(p, parallel); });
}

Status dilated_conv2d_norm(const ConvNormForward& p, const Parallel& parallel) { return norm_forward(p, parallel); }

Status dilated_conv2d_norm_backward(const ConvNormBackward& p, const Parallel& parallel) {
  return norm_backward(p, parallel);
}

}  // namespace segops::SEGOPS_ISA

#ifdef SEGOPS_ISA_IS_BASELINE
SEGOPS_LAUNCHER(dilated_conv2d_norm, ConvNormForward)
SEGOPS_LAUNCHER(dilated_conv2d_norm_backward, ConvNormBackward)
SEGOPS_LAUNCHER(dilated_conv2d, DilatedConv)
SEGOPS_LAUNCHER(dilated_conv2d_prepacked, DilatedConvPrepacked)
SEGOPS_LAUNCHER(dilated_conv2d_prepack, DilatedConvPrepack)
SEGOPS_LAUNCHER(dilated_conv2d_finish, DilatedConvFinish)
SEGOPS_LAUNCHER(dilated_conv2d_grad_input, DilatedConvGradInput)
SEGOPS_LAUNCHER(dilated_conv2d_grad_weight, DilatedConvGradWeight)
#endif
