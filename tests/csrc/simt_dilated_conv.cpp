// The kernels of dilated_conv, CUDA's on the host execution and the CPU's, against the definition: a sum of products at a
// time, in double.
#include "image.h"
#include "segops/dilated_conv.h"

namespace segops {
Status dilated_conv2d(const DilatedConv&, const Parallel&);
Status dilated_conv2d_grad_input(const DilatedConvGradInput&, const Parallel&);
Status dilated_conv2d_grad_weight(const DilatedConvGradWeight&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Image, driver::done, driver::numbers_of;

// Weights, or a vector of channels: memory of the exact size.
class Numbers {
 public:
  Numbers(const char* name, Dtype dtype, int64_t count, bool writable = false)
      : count_(count), dtype_(dtype), buffer_(name, count * driver::bytes_of(dtype), writable) {}
  double get(int64_t i) const { return driver::element(buffer_.data(), dtype_, i); }
  template <class Function>
  void fill(Function value) const {
    for (int64_t i = 0; i < count_; ++i) driver::set_element(buffer_.data(), dtype_, i, value());
  }
  void* data() const { return buffer_.data(); }
  int64_t count() const { return count_; }

 private:
  int64_t count_;
  Dtype dtype_;
  driver::Buffer buffer_;
};

// Of one case: sizes, and for each product of the definition the three elements that take part in it.
struct Shape {
  int64_t n, c, h, w, out, H, W, groups;
  ConvWindow window;

  template <class Visit>
  void each_product(Visit visit) const {
    const int64_t in_group = c / groups, out_group = out / groups;
    for (int64_t image = 0; image < n; ++image)
      for (int64_t to = 0; to < out; ++to)
        for (int64_t Y = 0; Y < H; ++Y)
          for (int64_t X = 0; X < W; ++X)
            for (int64_t from = 0; from < in_group; ++from)
              for (int64_t i = 0; i < window.kernel_h; ++i)
                for (int64_t j = 0; j < window.kernel_w; ++j) {
                  const int64_t y = Y * window.stride_h - window.padding_h + i * window.dilation_h;
                  const int64_t x = X * window.stride_w - window.padding_w + j * window.dilation_w;
                  if (y < 0 || y >= h || x < 0 || x >= w) continue;
                  const int64_t channel = to / out_group * in_group + from;
                  visit(static_cast<size_t>(((image * c + channel) * h + y) * w + x),
                        static_cast<size_t>(((to * in_group + from) * window.kernel_h + i) * window.kernel_w + j),
                        static_cast<size_t>(((image * out + to) * H + Y) * W + X));
                }
  }
};

// Sums of products and of their magnitudes, by which rounding is told.
struct Sums {
  std::vector<double> value, magnitude;
  explicit Sums(int64_t count) : value(static_cast<size_t>(count), 0), magnitude(static_cast<size_t>(count), 0) {}
  void add(size_t i, double product) {
    value[i] += product;
    magnitude[i] += std::abs(product);
  }
};

// `products`: what a product may be off by, relative to it; sums are accumulated in float, or in double.
void compare(driver::Differences& differences, const char* what, Dtype dtype, int64_t i, double found, double expected,
             double magnitude, double products) {
  const double rounded = driver::rounding(dtype).relative;
  const double sums = dtype == Dtype::float64 ? 1e-14 : 1e-6;
  differences.compare(what, i, found, expected, {rounded, magnitude * (sums + products) + 1e-7});
}

double activated(Activation activation, double x, double slope) {
  switch (activation) {
    case Activation::relu: return x < 0 ? 0 : x;
    case Activation::leaky_relu: return x > 0 ? x : kLeakySlope * x;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    case Activation::prelu: return x > 0 ? x : slope * x;
    default: return x;
  }
}

std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32), accumulated = driver::accumulated(dtype);
  const std::string op = of.text("op", "forward");
  const int64_t kernel = of.integer("kernel", 3), stride = of.integer("stride", 1), padding = of.integer("padding", 1);
  const int64_t dilation = of.integer("dilation", 1);
  const ConvWindow window{kernel,  of.integer("kernel_w", kernel),   stride,   of.integer("stride_w", stride),
                          padding, of.integer("padding_w", padding), dilation, of.integer("dilation_w", dilation)};
  Shape s{of.integer("n", 1),
          of.integer("c", 3),
          of.integer("h", 5),
          of.integer("w", 7),
          of.integer("out", 4),
          0,
          0,
          of.integer("groups", 1),
          window};
  const auto extent = [](int64_t in, int64_t k, int64_t step, int64_t pad, int64_t d) {
    return (in + 2 * pad - d * (k - 1) - 1) / step + 1;
  };
  s.H = extent(s.h, window.kernel_h, window.stride_h, window.padding_h, window.dilation_h);
  s.W = extent(s.w, window.kernel_w, window.stride_w, window.padding_w, window.dilation_w);
  if (s.H < 1 || s.W < 1) throw std::invalid_argument("no output");

  const bool fast = of.flag("fast");
  const bool forward = op == "forward", to_input = op == "grad_input", to_weight = op == "grad_weight";
  if (!forward && !to_input && !to_weight) throw std::invalid_argument("unknown op: " + op);
  const Image input("input", dtype, s.n, s.c, s.h, s.w, layout_of(of, "in_"), to_input);
  const Image output("output", dtype, s.n, s.out, s.H, s.W, layout_of(of, "out_"), forward);
  const Numbers weight("weight", dtype, s.out * (s.c / s.groups) * window.kernel_h * window.kernel_w, to_weight);
  std::mt19937_64 random(of.seed());
  std::normal_distribution<double> normal;
  if (!to_input) input.fill_normal(random);
  if (!forward) output.fill_normal(random);
  if (!to_weight) weight.fill([&] { return normal(random); });

  const std::vector<double> inputs = numbers_of(input), weights = numbers_of(weight), outputs = numbers_of(output);
  // TF32 has 10 bits of each factor, cut off or rounded.
  const double products = fast && dtype == Dtype::float32 ? 0x1p-9 : 0;
  // Winograd's algorithm errs by the largest of a tile, not by the products of the pixel.
  constexpr double kTile = 0x1p-12;
  driver::Differences differences;
  if (forward) {
    const auto vector = [&](const char* name, bool there) {
      auto numbers = std::make_unique<Numbers>(name, accumulated, there ? s.out : 0);
      numbers->fill([&] { return normal(random); });
      return numbers;
    };
    const int64_t activation = of.integer("activation", 0);
    const bool has_bias = of.flag("bias"), has_scale = of.flag("scale"), has_shift = of.flag("shift");
    const bool has_slope = activation == static_cast<int64_t>(Activation::prelu), has_residual = of.flag("residual");
    const auto bias = vector("bias", has_bias), scale = vector("scale", has_scale), shift = vector("shift", has_shift);
    const auto slope = vector("slope", has_slope);
    const Image residual("residual", dtype, s.n, s.out, s.H, s.W, layout_of(of, "residual_"), false);
    residual.fill_normal(random);
    ConvEpilogue epilogue{has_bias ? bias->data() : nullptr,   has_scale ? scale->data() : nullptr,
                          has_shift ? shift->data() : nullptr, has_slope ? slope->data() : nullptr,
                          static_cast<Activation>(activation), {}};
    if (has_residual) epilogue.residual = residual.const_planes();
    const DilatedConv p{dtype, input.const_planes(), weight.data(), window, s.groups, epilogue, output.planes(), fast};
    const driver::Buffer scratch("scratch", cuda::dilated_conv2d_scratch_bytes(p), true);
    differences.check(cuda::dilated_conv2d(p, scratch.data(), nullptr), "forward");
    if (!differences.none()) return differences.first;
    Sums sums(output.count());
    s.each_product([&](size_t i, size_t j, size_t o) { sums.add(o, inputs[i] * weights[j]); });
    const auto check = [&](const char* name, double error) {
      for (int64_t i = 0; i < output.count(); ++i) {
        const int64_t channel = i / (s.H * s.W) % s.out;
        const size_t at = static_cast<size_t>(i);
        const double times = has_scale ? scale->get(channel) : 1, before = has_bias ? bias->get(channel) : 0;
        const double after = has_shift ? shift->get(channel) : 0, beside = has_residual ? residual.get(i) : 0;
        const double x = times * (sums.value[at] + before) + after + beside;
        const double magnitude =
            std::abs(times) * (sums.magnitude[at] + std::abs(before)) + std::abs(after) + std::abs(beside);
        compare(differences, name, dtype, i, output.get(i),
                activated(epilogue.activation, x, has_slope ? slope->get(channel) : 0), 2 * magnitude, error);
      }
      output.check_gaps(differences);
    };
    check("output", products);
    done(dilated_conv2d(p, driver::kSerial));
    check("output of the CPU", kTile);
  } else if (to_input) {
    const DilatedConvGradInput p{dtype, output.const_planes(), weight.data(), window, s.groups, input.planes(), fast};
    const driver::Buffer scratch("scratch", cuda::dilated_conv2d_grad_input_scratch_bytes(p), true);
    differences.check(cuda::dilated_conv2d_grad_input(p, scratch.data(), nullptr), "grad_input");
    if (!differences.none()) return differences.first;
    Sums sums(input.count());
    s.each_product([&](size_t i, size_t j, size_t o) { sums.add(i, outputs[o] * weights[j]); });
    const auto check = [&](const char* name, double error) {
      for (int64_t i = 0; i < input.count(); ++i)
        compare(differences, name, dtype, i, input.get(i), sums.value[static_cast<size_t>(i)],
                sums.magnitude[static_cast<size_t>(i)], error);
      input.check_gaps(differences);
    };
    check("grad_input", products);
    done(dilated_conv2d_grad_input(p, driver::kSerial));
    check("grad_input of the CPU", kTile);
  } else {
    const DilatedConvGradWeight p{dtype, input.const_planes(), output.const_planes(), window, s.groups, weight.data(), fast};
    const driver::Buffer scratch("scratch", cuda::dilated_conv2d_grad_weight_scratch_bytes(p), true);
    differences.check(cuda::dilated_conv2d_grad_weight(p, scratch.data(), nullptr), "grad_weight");
    if (!differences.none()) return differences.first;
    Sums sums(weight.count());
    s.each_product([&](size_t i, size_t j, size_t o) { sums.add(j, inputs[i] * outputs[o]); });
    const auto check = [&](const char* name, double error) {
      for (int64_t i = 0; i < weight.count(); ++i)
        compare(differences, name, dtype, i, weight.get(i), sums.value[static_cast<size_t>(i)],
                sums.magnitude[static_cast<size_t>(i)], error);
    };
    check("grad_weight", products);
    done(dilated_conv2d_grad_weight(p, driver::kSerial));
    check("grad_weight of the CPU", 0);
  }
  return differences.first;
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
