// Binding of upsample_bilinear2d and upsample_cat. Messages for users come from segops/ops/upsample_bilinear.py, which sees
// the arguments first.
#include "segops/upsample_bilinear.h"

#include "image.h"

namespace segops {
Status upsample_bilinear2d(const UpsampleBilinear&, const Parallel&);
Status upsample_bilinear2d_backward(const UpsampleBilinearBackward&, const Parallel&);
Status upsample_cat(const UpsampleCat&, const Parallel&);
}  // namespace segops

namespace segops::binding {
namespace {

constexpr const char *kUpsample = "upsample_bilinear2d", *kCat = "upsample_cat";

#ifdef SEGOPS_DEVICE_KERNELS
void launch(const UpsampleBilinear& p, const Tensor& on) {
  check(cuda::upsample_bilinear2d(p, Queue(on).stream()), kUpsample);
}
void launch(const UpsampleBilinearBackward& p, const Tensor& on) {
  check(cuda::upsample_bilinear2d_backward(p, Queue(on).stream()), kUpsample);
}
void launch(const UpsampleCat& p, const Tensor& on) { check(cuda::upsample_cat(p, Queue(on).stream()), kCat); }
#else
void launch(const UpsampleBilinear& p, const Tensor&) { check(upsample_bilinear2d(p, threads()), kUpsample); }
void launch(const UpsampleBilinearBackward& p, const Tensor&) {
  check(upsample_bilinear2d_backward(p, threads()), kUpsample);
}
void launch(const UpsampleCat& p, const Tensor&) { check(upsample_cat(p, threads()), kCat); }
#endif

UpsampleBilinear interpolation(const Image& input, const Tensor& whole, const Planes& output, bool align_corners,
                               double scale_h, double scale_w) {
  UpsampleBilinear p{};
  p.dtype = dtype_of(input.tensor, kUpsample, "input");
  p.input = input.planes;
  p.output = output;
  p.vertical = linear_axis(input.planes.height, output.height, align_corners, scale_h);
  p.horizontal = linear_axis(input.planes.width, output.width, align_corners, scale_w);
  p.warm = is_warm(whole);
  return p;
}

Tensor forward(const Tensor& input, int64_t height, int64_t width, bool align_corners, double scale_h, double scale_w) {
  const Image image = checked_image(input, kUpsample, "input", height, width);
  Tensor output = result_like(input, input.size(1), height, width);
  launch(interpolation(image, output, planes_of(output), align_corners, scale_h, scale_w), input);
  return output;
}

Tensor backward(const Tensor& grad_output, int64_t height, int64_t width, bool align_corners, double scale_h,
                double scale_w) {
  const Image image = checked_image(grad_output, kUpsample, "grad_output", height, width);
  Tensor grad_input = result_like(grad_output, grad_output.size(1), height, width);
  UpsampleBilinearBackward p{};
  p.dtype = dtype_of(grad_output, kUpsample, "grad_output");
  p.grad_output = image.planes;
  p.grad_input = planes_of(grad_input);
  p.vertical = linear_axis(height, grad_output.size(2), align_corners, scale_h);
  p.horizontal = linear_axis(width, grad_output.size(3), align_corners, scale_w);
  launch(p, grad_output);
  return grad_input;
}

Tensor cat(const Tensor& input, const Tensor& skip, bool align_corners, bool skip_first) {
  check_image(skip, kCat, "skip");
  const Image from = checked_image(input, kCat, "input", skip.size(2), skip.size(3));
  const Image beside = checked_image(skip, kCat, "skip", skip.size(2), skip.size(3));
  check_device(skip, input, kCat, "skip");
  check(skip.size(0) == input.size(0) && skip.scalar_type() == input.scalar_type(), "segops.", kCat,
        ": skip must have the batch and the dtype of input, got ", to_text(skip), " for ", to_text(input));
  Tensor output = result_like(input, input.size(1) + skip.size(1), skip.size(2), skip.size(3));
  const auto part = [&](int64_t first, int64_t channels) {
    Planes p = planes_of(output);
    p.data = static_cast<char*>(p.data) + first * p.stride_c * static_cast<int64_t>(output.element_size());
    p.channels = channels;
    return p;
  };
  UpsampleCat p{};
  p.upsample = interpolation(from, output, part(skip_first ? skip.size(1) : 0, input.size(1)), align_corners, 0., 0.);
  p.skip = beside.planes;
  p.skip_output = part(skip_first ? 0 : input.size(1), skip.size(1));
  launch(p, input);
  return output;
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("upsample_bilinear2d", TORCH_BOX(&segops::binding::forward));
  m.impl("upsample_bilinear2d_backward", TORCH_BOX(&segops::binding::backward));
  m.impl("upsample_cat", TORCH_BOX(&segops::binding::cat));
}
