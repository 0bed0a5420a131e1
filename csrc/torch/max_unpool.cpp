// Binding of max_pool2d and max_unpool2d. Messages for users come from segops/ops/max_unpool.py, which sees the arguments
// first.
#include "segops/max_unpool.h"

#include "bad_data.h"
#include "image.h"
#include "segops/messages.h"

namespace segops {
Status max_pool2d(const MaxPool&, const Parallel&);
Status max_unpool2d(const MaxUnpool&, const Parallel&);
Status max_unpool2d_backward(const MaxUnpoolBackward&, const Parallel&);
Status max_unpool2d_flat(const MaxUnpoolFlat&, const Parallel&);
Status max_unpool2d_flat_backward(const MaxUnpoolFlatBackward&, const Parallel&);
}  // namespace segops

namespace segops::binding {
namespace {

constexpr const char *kPool = "max_pool2d", *kUnpool = "max_unpool2d";

#ifdef SEGOPS_DEVICE_KERNELS
void launch(const MaxPool& p, const Tensor& on) { check(cuda::max_pool2d(p, Queue(on).stream()), kPool); }
void launch(const MaxUnpool& p, const Tensor& on) { check(cuda::max_unpool2d(p, Queue(on).stream()), kUnpool); }
void launch(const MaxUnpoolBackward& p, const Tensor& on) {
  check(cuda::max_unpool2d_backward(p, Queue(on).stream()), kUnpool);
}
void launch(const MaxUnpoolFlat& p, const Tensor& on) {
  Tensor scratch = scratch_of(cuda::max_unpool2d_flat_scratch_bytes(p), on);
  check(cuda::max_unpool2d_flat(p, scratch.mutable_data_ptr(), Queue(on).stream()), kUnpool);
}
void launch(const MaxUnpoolFlatBackward& p, const Tensor& on) {
  check(cuda::max_unpool2d_flat_backward(p, Queue(on).stream()), kUnpool);
}
#else
void launch(const MaxPool& p, const Tensor&) { check(max_pool2d(p, threads()), kPool); }
void launch(const MaxUnpool& p, const Tensor&) { check(max_unpool2d(p, threads()), kUnpool); }
void launch(const MaxUnpoolBackward& p, const Tensor&) { check(max_unpool2d_backward(p, threads()), kUnpool); }
void launch(const MaxUnpoolFlat& p, const Tensor&) { check(max_unpool2d_flat(p, threads()), kUnpool); }
void launch(const MaxUnpoolFlatBackward& p, const Tensor&) { check(max_unpool2d_flat_backward(p, threads()), kUnpool); }
#endif

struct Windows {
  WindowAxis vertical, horizontal;
};

Windows windows_of(const std::vector<int64_t>& window, const char* op) {
  check(window.size() == 8, "segops.", op, ": a window has eight numbers, got ", window.size());
  for (size_t i = 0; i < window.size(); ++i)
    check(window[i] >= (i == 4 || i == 5 ? 0 : 1) && window[i] <= INT32_MAX, "segops.", op,
          ": not a window: ", to_text(window));
  check(window[0] <= 256 && window[1] <= 256 && window[0] * window[1] <= 256, "segops.", op,
        ": windows have at most 256 elements, got ", window[0], " x ", window[1]);
  return Windows{{window[0], window[2], window[4], window[6]}, {window[1], window[3], window[5], window[7]}};
}

// How many windows pooling has along an axis, and that each has an element inside it.
int64_t windows_along(const WindowAxis& axis, int64_t size, bool ceil_mode) {
  const int64_t room = size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1 + (ceil_mode ? axis.stride - 1 : 0);
  check(room >= 0, "segops.", kPool, ": windows are larger than the padded input");
  int64_t count = room / axis.stride + 1;
  if (ceil_mode && (count - 1) * axis.stride >= size + axis.padding) --count;
  for (int64_t i = 0; i < count; ++i) {
    const Taps taps = taps_inside(axis, i, size);
    check(taps.begin < taps.end, "segops.", kPool, ": a window has no element inside the input");
  }
  return count;
}

// In the layout that results have, of `channels_last`: as it is, or through one copy.
Image in_layout(const Tensor& t, bool channels_last) {
  const ConstPlanes p = planes_of(t.const_data_ptr(), t);
  if (channels_last ? p.stride_c == 1 : p.stride_w == 1) return Image{t, p};
  Tensor copy = empty_image(t.size(0), t.size(1), t.size(2), t.size(3), channels_last, t.scalar_type(), t);
  torch::stable::copy_(copy, t);
  return Image{copy, planes_of(copy.const_data_ptr(), copy)};
}

template <class Data>
PlanesOf<Data> as(const ConstPlanes& p) {
  return PlanesOf<Data>{
      static_cast<Data*>(p.data), p.batch, p.channels, p.height, p.width, p.stride_n, p.stride_c, p.stride_h, p.stride_w};
}

// Indices of the shape of `like`, for which height and width may be 0.
Image indices_in_layout(const Tensor& indices, const Tensor& like, ScalarType type, bool channels_last) {
  check(indices.scalar_type() == type, "segops.", kUnpool, ": indices must be ",
        type == ScalarType::Byte ? "uint8" : "int64");
  check(sizes_of(indices) == sizes_of(like), "segops.", kUnpool, ": indices must have the shape of the input, ",
        to_text(like), ", got ", to_text(indices));
  check_device(indices, like, kUnpool, "indices");
  return in_layout(indices, channels_last);
}

std::tuple<Tensor, Tensor> pool(const Tensor& input, std::vector<int64_t> window, bool ceil_mode) {
  check_image(input, kPool, "input");
  const Windows windows = windows_of(window, kPool);
  check(input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0, "segops.", kPool, ": input must have pixels, got ",
        to_text(input));
  const int64_t h = windows_along(windows.vertical, input.size(2), ceil_mode);
  const int64_t w = windows_along(windows.horizontal, input.size(3), ceil_mode);
  const bool last = suggests_channels_last(input);
  const Image image = in_layout(input, last);
  Tensor output = empty_image(input.size(0), input.size(1), h, w, last, input.scalar_type(), input);
  Tensor indices = empty_image(input.size(0), input.size(1), h, w, last, ScalarType::Byte, input);
  MaxPool p{};
  p.dtype = dtype_of(input, kPool, "input");
  p.input = image.planes;
  p.output = planes_of(output);
  p.indices = planes_of(static_cast<uint8_t*>(indices.mutable_data_ptr()), indices);
  p.vertical = windows.vertical;
  p.horizontal = windows.horizontal;
  p.warm = is_warm(output) && is_warm(indices);
  launch(p, input);
  return {output, indices};
}

template <class Index>
constexpr ScalarType kIndexType = sizeof(Index) == 1 ? ScalarType::Byte : ScalarType::Long;

// The output of params `p`, which hold what only one kind of index needs, and its record. kernel_h, kernel_w: of windows, 0
// for flat indices.
template <class Index, class Params>
std::tuple<Tensor, Tensor> unpooled(Params p, const Tensor& input, const Tensor& indices, int64_t height, int64_t width,
                                    bool accumulate, int64_t on_bad, int64_t kernel_h, int64_t kernel_w) {
  check_image(input, kUnpool, "input");
  check(height > 0 && width > 0 && height <= INT64_MAX / width, "segops.", kUnpool, ": the output must have pixels, got ",
        to_text({height, width}));
  p.dtype = accumulate ? floating_dtype(input, kUnpool, "input") : dtype_of(input, kUnpool, "input");
  const bool last = suggests_channels_last(input);
  const Image image = in_layout(input, last), own = indices_in_layout(indices, input, kIndexType<Index>, last);
  Tensor output = empty_image(input.size(0), input.size(1), height, width, last, input.scalar_type(), input);
  Tensor record = empty({kBadDataFields}, ScalarType::Long, input);
  p.input = image.planes;
  p.indices = as<const Index>(own.planes);
  p.output = planes_of(output);
  p.accumulate = accumulate;
  p.bad_indices = static_cast<BadData*>(record.mutable_data_ptr());
  p.warm = is_warm(output);
  launch(p, input);
  report_bad_data(record, on_bad, [&](const BadData& bad) {
    return describe_bad_indices(kUnpool, bad, sizes_of(indices), height, width, kernel_h, kernel_w);
  });
  return {output, record};
}

// The gradient of the input, in the same way.
template <class Index, class Params>
Tensor picked(Params p, const Tensor& grad_output, const Tensor& indices) {
  check_image(grad_output, kUnpool, "grad_output");
  p.dtype = floating_dtype(grad_output, kUnpool, "grad_output");
  check_image(indices, kUnpool, "indices");
  check(indices.size(0) == grad_output.size(0) && indices.size(1) == grad_output.size(1), "segops.", kUnpool,
        ": indices must be of the images and channels of the gradient");
  check_device(indices, grad_output, kUnpool, "indices");
  const bool last = suggests_channels_last(grad_output);
  const Image image = in_layout(grad_output, last), own = indices_in_layout(indices, indices, kIndexType<Index>, last);
  Tensor grad_input = empty_image(indices.size(0), indices.size(1), indices.size(2), indices.size(3), last,
                                  grad_output.scalar_type(), grad_output);
  p.grad_output = image.planes;
  p.indices = as<const Index>(own.planes);
  p.grad_input = planes_of(grad_input);
  if constexpr (sizeof(Index) == 1) p.warm = is_warm(grad_input);
  launch(p, grad_output);
  return grad_input;
}

std::tuple<Tensor, Tensor> unpool(const Tensor& input, const Tensor& indices, int64_t height, int64_t width,
                                  std::vector<int64_t> window, bool accumulate, int64_t on_bad) {
  const Windows windows = windows_of(window, kUnpool);
  MaxUnpool p{};
  p.vertical = windows.vertical;
  p.horizontal = windows.horizontal;
  return unpooled<uint8_t>(p, input, indices, height, width, accumulate, on_bad, window[0], window[1]);
}

Tensor unpool_backward(const Tensor& grad_output, const Tensor& indices, std::vector<int64_t> window, bool accumulate) {
  const Windows windows = windows_of(window, kUnpool);
  MaxUnpoolBackward p{};
  p.vertical = windows.vertical;
  p.horizontal = windows.horizontal;
  p.accumulate = accumulate;
  return picked<uint8_t>(p, grad_output, indices);
}

std::tuple<Tensor, Tensor> unpool_flat(const Tensor& input, const Tensor& indices, int64_t height, int64_t width,
                                       bool accumulate, int64_t on_bad) {
  return unpooled<int64_t>(MaxUnpoolFlat{}, input, indices, height, width, accumulate, on_bad, 0, 0);
}

Tensor unpool_flat_backward(const Tensor& grad_output, const Tensor& indices) {
  return picked<int64_t>(MaxUnpoolFlatBackward{}, grad_output, indices);
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("max_pool2d", TORCH_BOX(&segops::binding::pool));
  m.impl("max_unpool2d", TORCH_BOX(&segops::binding::unpool));
  m.impl("max_unpool2d_backward", TORCH_BOX(&segops::binding::unpool_backward));
  m.impl("max_unpool2d_flat", TORCH_BOX(&segops::binding::unpool_flat));
  m.impl("max_unpool2d_flat_backward", TORCH_BOX(&segops::binding::unpool_flat_backward));
}
