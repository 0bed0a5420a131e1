// Binding of upsample_argmax. Messages for users come from segops/ops/upsample_argmax.py, which sees the arguments first.
#include "segops/upsample_argmax.h"

#include <tuple>

#include "image.h"

namespace segops {
Status upsample_argmax(const UpsampleArgmax&, const Parallel&);
}

namespace segops::binding {
namespace {

constexpr const char* kArgmax = "upsample_argmax";

#ifdef SEGOPS_DEVICE_KERNELS
void launch(const UpsampleArgmax& p, const Tensor& on) { check(cuda::upsample_argmax(p, Queue(on).stream()), kArgmax); }
#else
void launch(const UpsampleArgmax& p, const Tensor&) { check(upsample_argmax(p, threads()), kArgmax); }
#endif

int64_t most_classes(Dtype labels) {
  switch (labels) {
    case Dtype::uint8: return int64_t{1} << 8;
    case Dtype::int16: return int64_t{1} << 15;
    default: return INT32_MAX;
  }
}

std::tuple<Tensor, Tensor> argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners, ScalarType dtype,
                                  bool with_score) {
  check_image(logits, kArgmax, "logits");
  check(height > 0 && width > 0, "segops.", kArgmax, ": size must be at least 1 in each dimension, got ",
        to_text({height, width}));
  check(logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0, "segops.", kArgmax,
        ": logits must have classes and pixels, got ", to_text(logits));
  Tensor labels = empty({logits.size(0), height, width}, dtype, logits);
  Tensor score = empty(with_score ? sizes_of(labels) : std::vector<int64_t>{0}, accumulation_type(logits), logits);
  const Image image = as_image(logits);

  UpsampleArgmax p{};
  p.logits_dtype = floating_dtype(logits, kArgmax, "logits");
  p.logits = image.planes;
  p.vertical = linear_axis(logits.size(2), height, align_corners, 0);
  p.horizontal = linear_axis(logits.size(3), width, align_corners, 0);
  p.labels_dtype = dtype_of(labels, kArgmax, "labels");
  check(p.labels_dtype >= Dtype::uint8 && logits.size(1) <= most_classes(p.labels_dtype), "segops.", kArgmax,
        ": dtype must be an integer type that holds ", logits.size(1), " classes");
  p.labels = labels.mutable_data_ptr();
  p.score = with_score ? score.mutable_data_ptr() : nullptr;
  launch(p, logits);
  return {labels, score};
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("upsample_argmax", TORCH_BOX(&segops::binding::argmax));
}
