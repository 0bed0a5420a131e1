// dilated_conv2d_grad_input: the transposed convolution, without an epilogue.
#include "dilated_conv.cuh"

namespace segops::cuda {
namespace {

Convolution transposed(const DilatedConvGradInput& p) {
  return convolution(p.dtype, p.grad_output, p.weight, p.grad_input, p.window, p.groups, true, p.fast);
}

}  // namespace

int64_t dilated_conv2d_grad_input_scratch_bytes(const DilatedConvGradInput& p) {
  return convolve_scratch_bytes(transposed(p));
}

Failure dilated_conv2d_grad_input(const DilatedConvGradInput& p, void* scratch, void* stream) {
  if (!conv_axes_fit(p.window, p.grad_input.height, p.grad_input.width)) return failure(cudaErrorInvalidValue);
  return failure(convolve(transposed(p), scratch, static_cast<cudaStream_t>(stream)));
}

}  // namespace segops::cuda
