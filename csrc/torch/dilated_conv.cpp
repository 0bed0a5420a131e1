// Binding of dilated_conv2d and its gradients. Messages for users come from segops/ops/dilated_conv.py, which sees the
// arguments first.
#include "segops/dilated_conv.h"

#include "dilated_conv_method.h"
#include "image.h"
#include "isa.h"

namespace segops {
Status dilated_conv2d(const DilatedConv&, const Parallel&);
Status dilated_conv2d_prepacked(const DilatedConvPrepacked&, const Parallel&);
Status dilated_conv2d_prepack(const DilatedConvPrepack&, const Parallel&);
Status dilated_conv2d_finish(const DilatedConvFinish&, const Parallel&);
Status dilated_conv2d_grad_input(const DilatedConvGradInput&, const Parallel&);
Status dilated_conv2d_grad_weight(const DilatedConvGradWeight&, const Parallel&);
}  // namespace segops

namespace segops::binding {
namespace {

constexpr const char* kConv = "dilated_conv2d";
using Vector = std::optional<Tensor>;

#ifdef SEGOPS_DEVICE_KERNELS
void launch(const DilatedConv& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::dilated_conv2d_scratch_bytes(p), on);
  check(cuda::dilated_conv2d(p, scratch.mutable_data_ptr(), queue.stream()), kConv);
}
void launch(const DilatedConvGradInput& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::dilated_conv2d_grad_input_scratch_bytes(p), on);
  check(cuda::dilated_conv2d_grad_input(p, scratch.mutable_data_ptr(), queue.stream()), kConv);
}
void launch(const DilatedConvGradWeight& p, const Tensor& on) {
  const Queue queue(on);
  Tensor scratch = scratch_of(cuda::dilated_conv2d_grad_weight_scratch_bytes(p), on);
  check(cuda::dilated_conv2d_grad_weight(p, scratch.mutable_data_ptr(), queue.stream()), kConv);
}
#else
void launch(const DilatedConv& p, const Tensor&) { check(dilated_conv2d(p, threads()), kConv); }
void launch(const DilatedConvGradInput& p, const Tensor&) { check(dilated_conv2d_grad_input(p, threads()), kConv); }
#endif

ConvWindow window_of(const std::vector<int64_t>& w, int64_t kernel_h, int64_t kernel_w) {
  check(w.size() == 6, "segops.", kConv, ": window must be stride, padding and dilation of both axes, got ", to_text(w));
  const ConvWindow window{kernel_h, kernel_w, w[0], w[1], w[2], w[3], w[4], w[5]};
  check(kernel_h > 0 && kernel_w > 0 && w[0] > 0 && w[1] > 0 && w[2] >= 0 && w[3] >= 0 && w[4] > 0 && w[5] > 0, "segops.",
        kConv, ": kernel, stride and dilation must be at least 1 and padding at least 0, got kernel ",
        to_text({kernel_h, kernel_w}), " and window ", to_text(w));
  return window;
}

int64_t outputs(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t reach = size + 2 * padding - dilation * (kernel - 1) - 1;
  return reach < 0 ? 0 : reach / stride + 1;
}

// That the three images of a convolution belong together.
void check_sizes(const std::vector<int64_t>& input, const std::vector<int64_t>& weight, const std::vector<int64_t>& output,
                 const ConvWindow& w, int64_t groups) {
  const bool channels = groups > 0 && weight[0] > 0 && weight[1] > 0 && weight[0] % groups == 0 &&
                        input[1] == weight[1] * groups && output[1] == weight[0];
  const bool sizes = input[2] > 0 && input[3] > 0 && output[2] > 0 && output[3] > 0 && input[0] == output[0] &&
                     output[2] == outputs(input[2], w.kernel_h, w.stride_h, w.padding_h, w.dilation_h) &&
                     output[3] == outputs(input[3], w.kernel_w, w.stride_w, w.padding_w, w.dilation_w);
  check(channels && sizes, "segops.", kConv, ": no convolution of an input ", to_text(input), " by a weight ",
        to_text(weight), " in ", groups, " groups gives ", to_text(output));
}

void check_alike(const Tensor& t, const Tensor& like, const char* name) {
  check_device(t, like, kConv, name);
  check(t.scalar_type() == like.scalar_type(), "segops.", kConv, ": ", name, " must have the dtype of the other tensors");
}

const void* vector_of(Vector& t, int64_t channels, const Tensor& like, const char* name) {
  if (!t) return nullptr;
  check_device(*t, like, kConv, name);
  check(t->dim() == 1 && t->size(0) == channels && t->scalar_type() == accumulation_type(like), "segops.", kConv, ": ", name,
        " must be [", channels, "] in the accumulation dtype");
  t = torch::stable::contiguous(*t);
  return t->const_data_ptr();
}

#ifndef SEGOPS_DEVICE_KERNELS
using torch::stable::detail::from;

// An operator of torch, whose own message does not come through the stable ABI.
void call(const char* name, const char* overload, StableIValue* stack) {
  const bool done = torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS;
  check(done, "segops.dilated_conv2d: ", name, " failed, for lack of memory as a rule");
}

std::vector<StableIValue> aten_window(const ConvWindow& w, int64_t groups) {
  return {from(std::vector<int64_t>{w.stride_h, w.stride_w}),
          from(std::vector<int64_t>{w.padding_h, w.padding_w}),
          from(std::vector<int64_t>{w.dilation_h, w.dilation_w}),
          from(false),
          from(std::vector<int64_t>{0, 0}),
          from(groups)};
}

Tensor aten_convolution(const Tensor& input, const Tensor& weight, const Vector& bias, const ConvWindow& w, int64_t groups) {
  std::vector<StableIValue> stack{from(input), from(weight), from(bias)};
  for (StableIValue value : aten_window(w, groups)) stack.push_back(value);
  call("aten::convolution", "", stack.data());
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor cast(const Tensor& t, ScalarType type) {
  StableIValue stack[] = {from(t), from(type), from(false), from(false), from(std::nullopt)};
  call("aten::to", "dtype", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// How ATen convolves in this dtype: 16-bit types are fast where the processor multiplies them; elsewhere, float32 copies
// are.
bool multiplies(ScalarType type) {
#if defined(__x86_64__)
  if (type == ScalarType::BFloat16) {
    static const bool has = __builtin_cpu_supports("avx512bf16") > 0;
    return has;
  }
#endif
  return type == ScalarType::Float || type == ScalarType::Double;
}

// The gradient of the input or, else, of the weight; the other tensor of the two only lends its shape.
Tensor aten_gradient(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const ConvWindow& w,
                     int64_t groups, bool of_input) {
  if (const ScalarType type = grad_output.scalar_type(); !multiplies(type)) {
    const auto wide = [](const Tensor& t) { return cast(t, ScalarType::Float); };
    return cast(aten_gradient(wide(grad_output), wide(input), wide(weight), w, groups, of_input), type);
  }
  std::vector<StableIValue> stack{from(grad_output), from(input), from(weight), from(std::nullopt)};
  for (StableIValue value : aten_window(w, groups)) stack.push_back(value);
  const bool wanted[] = {of_input, !of_input, false};
  stack.push_back(from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted, 3)));
  call("aten::convolution_backward", "", stack.data());
  std::vector<Tensor> results;
  for (size_t i = 0; i < 3; ++i) results.push_back(torch::stable::detail::to<Tensor>(stack[i]));
  return results[of_input ? 0 : 1];
}

// Whether t has the strides that empty_image gives.
bool is_laid_out(const Tensor& t, bool channels_last) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const int64_t planar[] = {c * h * w, h * w, w, 1}, last[] = {c * h * w, 1, w * c, c};
  for (int64_t d = 0; d < 4; ++d)
    if (t.stride(d) != (channels_last ? last : planar)[d]) return false;
  return true;
}

Tensor empty_image_like(const Tensor& t, bool channels_last) {
  return empty_image(t.size(0), t.size(1), t.size(2), t.size(3), channels_last, t.scalar_type(), t);
}

// t in the layout that a result has.
Tensor laid_out(const Tensor& t, bool channels_last) {
  if (is_laid_out(t, channels_last)) return t;
  Tensor copy = empty_image_like(t, channels_last);
  return torch::stable::copy_(copy, t);
}

bool follows(const ConvEpilogue& e, bool with_bias = true) {
  return (with_bias && e.bias) || e.scale || e.shift || e.residual.data || e.activation != Activation::none;
}

bool has_own_kernels(const Tensor& t) { return isa() != Isa::baseline && t.scalar_type() != ScalarType::Double; }

// Processors without AVX2 keep ATen's. `rounded` by ATen: what follows its convolution is nothing. The rounding of 16 bits
// is far above the error of F(4x4) in float32.
ConvMethod method_of(const Tensor& t, const ConvWindow& w, int64_t groups, ConvSize size, bool fast, bool rounded,
                     Prepacked kept = Prepacked::none) {
  if (!has_own_kernels(t)) return ConvMethod::aten;
  size.channels_last = suggests_channels_last(t);
  const bool narrow = t.element_size() == 2;
  const ConvCosts& costs = isa() == Isa::x86_64_v4 ? kAvx512 : kAvx2;
  return conv_method(costs, w, groups, size, fast || narrow, narrow && rounded && multiplies(t.scalar_type()) ? 2 : 1, kept);
}

Prepacked kept_of(const Vector& prepacked, const Tensor& weight) {
  if (!prepacked) return Prepacked::none;
  const Tensor& t = *prepacked;
  check(t.is_cpu() && t.scalar_type() == ScalarType::Float && t.dim() == 1 && t.is_contiguous(), "segops.", kConv,
        ": prepacked must be a contiguous vector of float32 on the CPU");
  for (bool fast : {false, true})
    if (weight.size(2) == 3 && weight.size(3) == 3 && t.numel() == prepacked_floats(weight.size(1), weight.size(0), fast))
      return fast ? Prepacked::winograd4 : Prepacked::winograd2;
  fail("segops.", kConv, ": prepacked does not belong to a weight ", to_text(weight));
}

Tensor prepack(const Tensor& weight, bool fast) {
  check_image(weight, kConv, "weight");
  const Dtype dtype = floating_dtype(weight, kConv, "weight");
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  check(dtype != Dtype::float64 && weight.size(2) == 3 && weight.size(3) == 3 && outputs > 0 && inputs > 0, "segops.", kConv,
        ": only weights of 3x3 convolutions in 32 or 16 bits are prepacked, got ", to_text(weight));
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor result = empty({prepacked_floats(inputs, outputs, fast)}, ScalarType::Float, weight);
  float* const to = static_cast<float*>(result.mutable_data_ptr());
  check(dilated_conv2d_prepack({dtype, dense.const_data_ptr(), inputs, outputs, fast, to}, threads()), kConv);
  return result;
}

// ATen's convolution, of images that are channels last if `last` says so, and what follows it. In 16 bits ATen rounds its
// result: where more follows, it convolves float32 copies instead.
Tensor convolve_by_aten(const DilatedConv& p, const Tensor& input, const Tensor& weight, const Vector& bias, bool last) {
  const bool channels_last = suggests_channels_last(input), narrow = input.element_size() == 2;
  ConvEpilogue rest = p.epilogue;
  // Its bias is in the dtype of its input.
  const bool alone = !narrow ? !follows(rest, false) : !follows(rest) && multiplies(input.scalar_type());
  // A bias first of all is ATen's own.
  rest.bias = nullptr;
  const auto wide = [&](const Tensor& t) { return narrow && !alone ? cast(t, ScalarType::Float) : t; };
  const Tensor image = wide(input);
  Tensor convolved = aten_convolution(last ? laid_out(image, true) : image, wide(weight), bias, p.window, p.groups);
  convolved = laid_out(convolved, channels_last);
  if (alone) return convolved;
  Tensor output = narrow ? empty_image(convolved.size(0), convolved.size(1), convolved.size(2), convolved.size(3),
                                       channels_last, input.scalar_type(), input)
                         : convolved;
  const ConstPlanes from = planes_of(convolved.const_data_ptr(), convolved);
  check(dilated_conv2d_finish({p.dtype, from, rest, planes_of(output)}, threads()), kConv);
  return output;
}
#endif

Tensor convolve_by(const Tensor& input, const Tensor& weight, const Vector& prepacked, Vector bias, Vector scale,
                   Vector shift, Vector residual, Vector slope, const std::vector<int64_t>& window, int64_t groups,
                   int64_t activation, bool fast) {
  check_image(input, kConv, "input");
  check_image(weight, kConv, "weight");
  check_alike(weight, input, "weight");
  DilatedConv p{};
  p.dtype = floating_dtype(input, kConv, "input");
  p.window = window_of(window, weight.size(2), weight.size(3));
  p.groups = groups;
  p.fast = fast;
  const ConvWindow& w = p.window;
  const int64_t channels = weight.size(0),
                height = outputs(input.size(2), w.kernel_h, w.stride_h, w.padding_h, w.dilation_h),
                width = outputs(input.size(3), w.kernel_w, w.stride_w, w.padding_w, w.dilation_w);
  check_sizes(sizes_of(input), sizes_of(weight), {input.size(0), channels, height, width}, w, groups);
  p.epilogue.bias = vector_of(bias, channels, input, "bias");
  p.epilogue.scale = vector_of(scale, channels, input, "scale");
  p.epilogue.shift = vector_of(shift, channels, input, "shift");
  p.epilogue.slope = vector_of(slope, channels, input, "slope");
  check(activation >= 0 && activation <= static_cast<int64_t>(Activation::prelu), "segops.", kConv,
        ": activation must be in 0 .. ", static_cast<int64_t>(Activation::prelu), ", got ", activation);
  p.epilogue.activation = static_cast<Activation>(activation);
  check((p.epilogue.activation == Activation::prelu) == slope.has_value(), "segops.", kConv,
        ": slope belongs to prelu, and only to it");
  const std::vector<int64_t> sizes{input.size(0), channels, height, width};
  std::optional<Image> beside;
  if (residual) {
    check_alike(*residual, input, "residual");
    check(sizes_of(*residual) == sizes, "segops.", kConv, ": residual must be ", to_text(sizes), ", got ",
          to_text(*residual));
    beside = as_image(*residual);
    p.epilogue.residual = beside->planes;
  }
  const Tensor dense = torch::stable::contiguous(weight);
#ifndef SEGOPS_DEVICE_KERNELS
  const Prepacked kept = kept_of(prepacked, weight);
  const ConvSize size{input.size(0), input.size(1), channels, height, width, suggests_channels_last(input)};
  const ConvMethod method = has_own_kernels(input) && single_is_best(w, groups, size)
                                ? ConvMethod::single
                                : method_of(input, w, groups, size, fast, !follows(p.epilogue), kept);
  if (method <= ConvMethod::aten_last && input.size(0) > 0)
    return convolve_by_aten(p, input, dense, bias, method == ConvMethod::aten_last);
  p.fast = method == ConvMethod::winograd4;
#endif
  Tensor output = result_like(input, channels, height, width);
  if (input.size(0) == 0) return output;
  const Image image = as_image(input);
  p.input = image.planes;
  p.weight = dense.const_data_ptr();
  p.output = planes_of(output);
#ifndef SEGOPS_DEVICE_KERNELS
  if (method != ConvMethod::single && kept == (p.fast ? Prepacked::winograd4 : Prepacked::winograd2)) {
    const Status status = dilated_conv2d_prepacked({p, static_cast<const float*>(prepacked->const_data_ptr())}, threads());
    check(status != Status::unsupported, "segops.", kConv,
          ": the weight has changed since it was prepacked, or was prepacked for another processor; prepack it again");
    check(status, kConv);
    return output;
  }
#else
  (void)prepacked;
#endif
  launch(p, input);
  return output;
}

Tensor convolve(const Tensor& input, const Tensor& weight, Vector bias, Vector scale, Vector shift, Vector residual,
                Vector slope, const std::vector<int64_t>& window, int64_t groups, int64_t activation, bool fast) {
  return convolve_by(input, weight, std::nullopt, bias, scale, shift, residual, slope, window, groups, activation, fast);
}

#ifndef SEGOPS_DEVICE_KERNELS
Tensor convolve_prepacked(const Tensor& input, const Tensor& weight, const Tensor& prepacked, Vector bias, Vector scale,
                          Vector shift, Vector residual, Vector slope, const std::vector<int64_t>& window, int64_t groups,
                          int64_t activation, bool fast) {
  return convolve_by(input, weight, prepacked, bias, scale, shift, residual, slope, window, groups, activation, fast);
}
#endif

Tensor grad_input(const Tensor& grad_output, const Tensor& weight, int64_t height, int64_t width,
                  const std::vector<int64_t>& window, int64_t groups, bool fast) {
  check_image(grad_output, kConv, "grad_output");
  check_image(weight, kConv, "weight");
  check_alike(weight, grad_output, "weight");
  const Dtype dtype = floating_dtype(grad_output, kConv, "grad_output");
  const ConvWindow w = window_of(window, weight.size(2), weight.size(3));
  const int64_t n = grad_output.size(0), channels = weight.size(1) * groups;
  check_sizes({n, channels, height, width}, sizes_of(weight), sizes_of(grad_output), w, groups);
  Tensor result = result_like(grad_output, channels, height, width);
  if (n == 0) return result;
  const Tensor dense = torch::stable::contiguous(weight);
#ifndef SEGOPS_DEVICE_KERNELS
  const ConvMethod method =
      method_of(grad_output, w, groups, {n, grad_output.size(1), channels, height, width, false}, fast, true);
  if (method <= ConvMethod::aten_last)
    return laid_out(aten_gradient(grad_output, result, dense, w, groups, true), suggests_channels_last(grad_output));
  fast = method == ConvMethod::winograd4;
#endif
  const Image image = as_image(grad_output);
  launch(DilatedConvGradInput{dtype, image.planes, dense.const_data_ptr(), w, groups, planes_of(result), fast}, grad_output);
  return result;
}

#ifndef SEGOPS_DEVICE_KERNELS
// Whether tap k of an axis lies in the padding at every output.
bool sees_padding_alone(int64_t k, int64_t in, int64_t out, int64_t stride, int64_t padding, int64_t dilation) {
  for (int64_t o = 0; o < out; ++o) {
    const int64_t i = o * stride - padding + k * dilation;
    if (i >= 0 && i < in) return false;
  }
  return true;
}

// ATen's gradient of a weight in bfloat16, planar, has in taps that see padding alone what was in memory before, where an
// image is a pixel wide and the stride is 2 (torch 2.14, oneDNN): zeros are written there.
void clear_taps_of_padding(Tensor& grad, const Tensor& input, const Tensor& grad_output, const ConvWindow& w) {
  if (grad.scalar_type() != ScalarType::BFloat16) return;
  const int64_t taps = w.kernel_h * w.kernel_w, filters = grad.size(0) * grad.size(1);
  uint16_t* const to = static_cast<uint16_t*>(grad.mutable_data_ptr());
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t y = tap / w.kernel_w, x = tap % w.kernel_w;
    if (sees_padding_alone(y, input.size(2), grad_output.size(2), w.stride_h, w.padding_h, w.dilation_h) ||
        sees_padding_alone(x, input.size(3), grad_output.size(3), w.stride_w, w.padding_w, w.dilation_w))
      for (int64_t k = 0; k < filters; ++k) to[k * taps + tap] = 0;
  }
}
#endif

// Of the weight only the shape counts. It is given because ATen asks for a tensor of it, and one made for that would be as
// much memory again.
Tensor grad_weight(const Tensor& input, const Tensor& grad_output, const Tensor& weight, const std::vector<int64_t>& window,
                   int64_t groups, bool fast) {
  check_image(input, kConv, "input");
  check_image(grad_output, kConv, "grad_output");
  check_image(weight, kConv, "weight");
  check_alike(grad_output, input, "grad_output");
  check_alike(weight, input, "weight");
  const Dtype dtype = floating_dtype(input, kConv, "input");
  const ConvWindow w = window_of(window, weight.size(2), weight.size(3));
  check_sizes(sizes_of(input), sizes_of(weight), sizes_of(grad_output), w, groups);
#ifdef SEGOPS_DEVICE_KERNELS
  Tensor result = empty(sizes_of(weight), input.scalar_type(), input);
  const Image image = as_image(input), of_output = as_image(grad_output);
  launch(DilatedConvGradWeight{dtype, image.planes, of_output.planes, w, groups, result.mutable_data_ptr(), fast}, input);
  return result;
#else
  (void)dtype, (void)fast;
  if (input.size(0) == 0) {
    Tensor result = empty(sizes_of(weight), input.scalar_type(), input);
    return torch::stable::zero_(result);
  }
  Tensor result = laid_out(aten_gradient(grad_output, input, weight, w, groups, false), false);
  clear_taps_of_padding(result, input, grad_output, w);
  return result;
#endif
}

}  // namespace
}  // namespace segops::binding

SEGOPS_LIBRARY_IMPL(SEGOPS_NAMESPACE, SEGOPS_DISPATCH_KEY, m) {
  m.impl("dilated_conv2d", TORCH_BOX(&segops::binding::convolve));
#ifndef SEGOPS_DEVICE_KERNELS
  m.impl("dilated_conv2d_prepacked", TORCH_BOX(&segops::binding::convolve_prepacked));
  m.impl("dilated_conv2d_prepack", TORCH_BOX(&segops::binding::prepack));
#endif
  m.impl("dilated_conv2d_grad_input", TORCH_BOX(&segops::binding::grad_input));
  m.impl("dilated_conv2d_grad_weight", TORCH_BOX(&segops::binding::grad_weight));
}
