// The CUDA kernels of upsample_bilinear on the host execution, and its CPU kernels, against the definition: a tap at a time,
// in double.
#include "bilinear.h"
#include "segops/upsample_bilinear.h"

namespace segops {
Status upsample_bilinear2d(const UpsampleBilinear&, const Parallel&);
Status upsample_bilinear2d_backward(const UpsampleBilinearBackward&, const Parallel&);
Status upsample_cat(const UpsampleCat&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Image;

// op: forward, backward or cat. The coarse image is n, c, h, w in coarse_layout; the fine one has H rows and W columns.
std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32);
  const std::string op = of.text("op", "forward");
  const int64_t n = of.integer("n", 1), c = of.integer("c", 3), h = of.integer("h", 5), w = of.integer("w", 7);
  const int64_t height = of.integer("H", 10), width = of.integer("W", 14);
  const bool align = of.flag("align");
  const driver::Layout coarse_layout = layout_of(of, "coarse_"), fine_layout = layout_of(of, "fine_");
  const driver::Bilinear bilinear{linear_axis(h, height, align, of.real("scale_h", 0)),
                                  linear_axis(w, width, align, of.real("scale_w", 0))};
  std::mt19937_64 random(of.seed());
  driver::Differences differences;
  const driver::Tolerance tolerance = driver::rounding(dtype, 1e-5 * of.real("sums", 1));

  if (op == "backward") {
    const Image grad("grad_output", dtype, n, c, height, width, fine_layout, false);
    const Image result("grad_input", dtype, n, c, h, w, coarse_layout, true), expected(result, "expected");
    grad.fill_normal(random);
    const Image host(result, "grad_input of the CPU");
    UpsampleBilinearBackward p{dtype, grad.const_planes(), result.planes(), bilinear.vertical, bilinear.horizontal};
    differences.check(cuda::upsample_bilinear2d_backward(p, nullptr), "backward");
    if (!differences.none()) return differences.first;
    expected.fill(bilinear.transposed(driver::numbers_of(grad)));
    result.compare(differences, expected, tolerance);
    p.grad_input = host.planes();
    driver::done(upsample_bilinear2d_backward(p, driver::kSerial));
    host.compare(differences, expected, tolerance);
    return differences.first;
  }

  const Image input("input", dtype, n, c, h, w, coarse_layout, false);
  const Image output("output", dtype, n, c, height, width, fine_layout, true), expected(output, "expected");
  input.fill_normal(random);
  const Image host(output, "output of the CPU");
  UpsampleBilinear p{dtype, input.const_planes(), output.planes(), bilinear.vertical, bilinear.horizontal, false},
      on_host = p;
  on_host.output = host.planes();
  if (op == "forward") {
    differences.check(cuda::upsample_bilinear2d(p, nullptr), "forward");
    if (!differences.none()) return differences.first;
    driver::done(upsample_bilinear2d(on_host, driver::kSerial));
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
    driver::done(upsample_cat({on_host, skip.const_planes(), host_copy.planes()}, driver::kSerial));
    host_copy.compare(differences, same, driver::kExact);
  }
  expected.fill([&](int64_t i) { return bilinear.interpolated(input, i); });
  output.compare(differences, expected, tolerance);
  host.compare(differences, expected, tolerance);
  return differences.first;
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
