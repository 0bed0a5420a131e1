// Binding of upsample_nearest2d and bed_of_nails2d. Messages for users come from segops/ops/upsample_nearest.py, which sees
// the arguments first.
#include "segops/upsample_nearest.h"

#include "image.h"

namespace segops {
Status upsample_nearest2d(const UpsampleNearest&, const Parallel&);
Status upsample_nearest2d_backward(const UpsampleNearestBackward&, const Parallel&);
Status bed_of_nails2d(const BedOfNails&, const Parallel&);
}  // namespace segops

namespace segops::binding {
namespace {

constexpr const char *kNearest = "upsample_nearest2d", *kNails = "bed_of_nails2d";

#ifdef SEGOPS_DEVICE_KERNELS
void launch(const UpsampleNearest& p, const Tensor& on) { check(cuda::upsample_nearest2d(p, Queue(on).stream()), kNearest); }
void launch(const UpsampleNearestBackward& p, const Tensor& on) {
  check(cuda::upsample_nearest2d_backward(p, Queue(on).stream()), kNearest);
}
void launch(const BedOfNails& p, const Tensor& on) { check(cuda::bed_of_nails2d(p, Queue(on).stream()), kNails); }
#else
void launch(const UpsampleNearest& p, const Tensor&) { check(upsample_nearest2d(p, threads()), kNearest); }
void launch(const UpsampleNearestBackward& p, const Tensor&) { check(upsample_nearest2d_backward(p, threads()), kNearest); }
void launch(const BedOfNails& p, const Tensor&) { check(bed_of_nails2d(p, threads()), kNails); }
#endif

Tensor forward(const Tensor& input, int64_t height, int64_t width, double scale_h, double scale_w) {
  const Image image = checked_image(input, kNearest, "input", height, width);
  Tensor output = result_like(input, input.size(1), height, width);
  UpsampleNearest p{};
  p.dtype = dtype_of(input, kNearest, "input");
  p.input = image.planes;
  p.output = planes_of(output);
  p.vertical = nearest_axis(input.size(2), height, scale_h);
  p.horizontal = nearest_axis(input.size(3), width, scale_w);
  p.warm = is_warm(output);
  launch(p, input);
  return output;
}

Tensor backward(const Tensor& grad_output, int64_t height, int64_t width, double scale_h, double scale_w) {
  const Image image = checked_image(grad_output, kNearest, "grad_output", height, width);
  Tensor grad_input = result_like(grad_output, grad_output.size(1), height, width);
  UpsampleNearestBackward p{};
  p.dtype = dtype_of(grad_output, kNearest, "grad_output");
  p.grad_output = image.planes;
  p.grad_input = planes_of(grad_input);
  p.vertical = nearest_axis(height, grad_output.size(2), scale_h);
  p.horizontal = nearest_axis(width, grad_output.size(3), scale_w);
  launch(p, grad_output);
  return grad_input;
}

Tensor nails(const Tensor& input, int64_t scale, bool transposed) {
  check(scale > 0, "segops.", kNails, ": scale must be at least 1, got ", scale);
  int64_t height = input.dim() == 4 ? input.size(2) : 0, width = input.dim() == 4 ? input.size(3) : 0;
  if (transposed) {
    check(height % scale == 0 && width % scale == 0, "segops.", kNails, ": sizes of the gradient must be multiples of ",
          scale, ", got ", to_text({height, width}));
    height /= scale;
    width /= scale;
  } else {
    check(height <= INT32_MAX / scale && width <= INT32_MAX / scale, "segops.", kNails, ": scale ", scale,
          " makes the output too large");
    height *= scale;
    width *= scale;
  }
  const Image image = checked_image(input, kNails, transposed ? "grad_output" : "input", height, width);
  Tensor output = result_like(input, input.size(1), height, width);
  BedOfNails p{};
  p.dtype = dtype_of(input, kNails, "input");
  p.input = image.planes;
  p.output = planes_of(output);
  p.scale = scale;
  p.transposed = transposed;
  p.warm = is_warm(output);
  launch(p, input);
  return output;
}

Tensor bed_of_nails(const Tensor& input, int64_t scale) { return nails(input, scale, false); }
Tensor bed_of_nails_backward(const Tensor& grad_output, int64_t scale) { return nails(grad_output, scale, true); }

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("upsample_nearest2d", TORCH_BOX(&segops::binding::forward));
  m.impl("upsample_nearest2d_backward", TORCH_BOX(&segops::binding::backward));
  m.impl("bed_of_nails2d", TORCH_BOX(&segops::binding::bed_of_nails));
  m.impl("bed_of_nails2d_backward", TORCH_BOX(&segops::binding::bed_of_nails_backward));
}
