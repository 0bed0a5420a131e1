// The CUDA kernels of upsample_bilinear on the host execution, and its CPU kernels, against the definition: a tap at a time,
// in double.
#include "image.h"
#include "segops/upsample_bilinear.h"

namespace segops {
Status upsample_bilinear2d(const UpsampleBilinear&, const Parallel&);
Status upsample_bilinear2d_backward(const UpsampleBilinearBackward&, const Parallel&);
Status upsample_cat(const UpsampleCat&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Image;

double interpolated(const Image& input, const UpsampleBilinear& p, int64_t plane, int64_t y, int64_t x) {
  const LinearTap v = linear_tap(p.vertical, y), h = linear_tap(p.horizontal, x);
  const auto at = [&](int64_t row, int64_t column) {
    return input.get((plane * p.input.height + row) * p.input.width + column);
  };
  return (1 - v.weight) * ((1 - h.weight) * at(v.low, h.low) + h.weight * at(v.low, h.high)) +
         v.weight * ((1 - h.weight) * at(v.high, h.low) + h.weight * at(v.high, h.high));
}

void expect_forward(const Image& expected, const Image& input, const UpsampleBilinear& p) {
  const int64_t width = p.output.width, height = p.output.height;
  expected.fill([&](int64_t i) { return interpolated(input, p, i / width / height, i / width % height, i % width); });
}

void expect_backward(const Image& expected, const Image& grad, const UpsampleBilinearBackward& p) {
  const int64_t width = p.grad_input.width, height = p.grad_input.height;
  std::vector<double> sums(static_cast<size_t>(expected.count()), 0.);
  for (int64_t i = 0; i < grad.count(); ++i) {
    const int64_t x = i % p.grad_output.width, y = i / p.grad_output.width % p.grad_output.height;
    const int64_t plane = i / p.grad_output.width / p.grad_output.height;
    const LinearTap v = linear_tap(p.vertical, y), h = linear_tap(p.horizontal, x);
    const auto add = [&](int64_t row, int64_t column, double weight) {
      sums[static_cast<size_t>((plane * height + row) * width + column)] += weight * grad.get(i);
    };
    add(v.low, h.low, (1 - v.weight) * (1 - h.weight));
    add(v.low, h.high, (1 - v.weight) * h.weight);
    add(v.high, h.low, v.weight * (1 - h.weight));
    add(v.high, h.high, v.weight * h.weight);
  }
  expected.fill([&](int64_t i) { return sums[static_cast<size_t>(i)]; });
}

driver::Layout layout_of(const driver::Case& of, const std::string& prefix) {
  return {of.planar(prefix + "layout"), of.integer(prefix + "pad", 0), of.integer(prefix + "gap", 0),
          of.integer(prefix + "offset", 0)};
}

// op: forward, backward or cat. The coarse image is n, c, h, w in coarse_layout; the fine one has H rows and W columns.
std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32);
  const std::string op = of.text("op", "forward");
  const int64_t n = of.integer("n", 1), c = of.integer("c", 3), h = of.integer("h", 5), w = of.integer("w", 7);
  const int64_t height = of.integer("H", 10), width = of.integer("W", 14);
  const bool align = of.flag("align");
  const driver::Layout coarse_layout = layout_of(of, "coarse_"), fine_layout = layout_of(of, "fine_");
  const LinearAxis vertical = linear_axis(h, height, align, of.real("scale_h", 0)),
                   horizontal = linear_axis(w, width, align, of.real("scale_w", 0));
  std::mt19937_64 random(of.seed());
  driver::Differences differences;
  const driver::Tolerance tolerance = driver::rounding(dtype, 1e-5 * of.real("sums", 1));

  if (op == "backward") {
    const Image grad("grad_output", dtype, n, c, height, width, fine_layout, false);
    const Image result("grad_input", dtype, n, c, h, w, coarse_layout, true), expected(result, "expected");
    grad.fill_normal(random);
    const Image host(result, "grad_input of the CPU");
    UpsampleBilinearBackward p{dtype, grad.const_planes(), result.planes(), vertical, horizontal};
    differences.check(cuda::upsample_bilinear2d_backward(p, nullptr), "backward");
    if (!differences.none()) return differences.first;
    expect_backward(expected, grad, p);
    result.compare(differences, expected, tolerance);
    p.grad_input = host.planes();
    if (upsample_bilinear2d_backward(p, driver::kSerial) != Status::ok) std::abort();
    host.compare(differences, expected, tolerance);
    return differences.first;
  }

  const Image input("input", dtype, n, c, h, w, coarse_layout, false);
  const Image output("output", dtype, n, c, height, width, fine_layout, true), expected(output, "expected");
  input.fill_normal(random);
  const Image host(output, "output of the CPU");
  UpsampleBilinear p{dtype, input.const_planes(), output.planes(), vertical, horizontal, false}, on_host = p;
  on_host.output = host.planes();
  if (op == "forward") {
    differences.check(cuda::upsample_bilinear2d(p, nullptr), "forward");
    if (!differences.none()) return differences.first;
    if (upsample_bilinear2d(on_host, driver::kSerial) != Status::ok) std::abort();
  } else {
    const int64_t channels = of.integer("skip", 2);
    const Image skip("skip", dtype, n, channels, height, width, layout_of(of, "skip_"), false);
    const Image copy("skip_output", dtype, n, channels, height, width, fine_layout, true), same(copy, "same");
    const Image host_copy(copy, "skip_output of the CPU");
    skip.fill_normal(random);
    differences.check(cuda::upsample_cat({p, skip.const_planes(), copy.planes()}, nullptr), "cat");
    if (!differences.none()) return differences.first;
    same.fill([&](int64_t i) { return skip.get(i); });
    copy.compare(differences, same, driver::kExact);
    if (upsample_cat({on_host, skip.const_planes(), host_copy.planes()}, driver::kSerial) != Status::ok) std::abort();
    host_copy.compare(differences, same, driver::kExact);
  }
  expect_forward(expected, input, p);
  output.compare(differences, expected, tolerance);
  host.compare(differences, expected, tolerance);
  return differences.first;
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
