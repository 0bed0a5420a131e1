// The CUDA kernels of upsample_nearest2d and bed_of_nails2d on the host execution, against their CPU kernels: the same bits.
#include "image.h"
#include "segops/upsample_nearest.h"

namespace segops {
Status upsample_nearest2d(const UpsampleNearest&, const Parallel&);
Status upsample_nearest2d_backward(const UpsampleNearestBackward&, const Parallel&);
Status bed_of_nails2d(const BedOfNails&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Image;

// Runs both on params whose results are what `place` sets.
template <class Params, class Device, class Host, class Place>
std::string same_bits(Params p, const Device& device, const Host& host, const Place& place, const Image& result) {
  const Image expected(result, "expected");
  driver::Differences differences;
  place(p) = result.planes();
  differences.check(device(p, nullptr), "launch");
  if (!differences.none()) return differences.first;
  place(p) = expected.planes();
  driver::done(host(p, driver::kSerial));
  result.compare(differences, expected, driver::kExact);
  return differences.first;
}

// op: nearest, backward, nails (scale; from the coarse image to the fine one) or picked (the other way round). The coarse
// image is n, c, h, w in coarse_layout; the fine one has H rows and W columns.
std::string run(const driver::Case& of) {
  const Dtype dtype = of.dtype("dtype", Dtype::float32);
  const std::string op = of.text("op", "nearest");
  const bool is_nails = op == "nails" || op == "picked", goes_up = op == "nearest" || op == "nails";
  const int64_t scale = is_nails ? of.integer("scale", 2) : 1;
  const int64_t n = of.integer("n", 1), c = of.integer("c", 3), h = of.integer("h", 5), w = of.integer("w", 7);
  const int64_t height = is_nails ? h * scale : of.integer("H", 10), width = is_nails ? w * scale : of.integer("W", 14);
  const driver::Layout coarse_layout = layout_of(of, "coarse_"), fine_layout = layout_of(of, "fine_");
  const Image coarse("coarse", dtype, n, c, h, w, coarse_layout, !goes_up);
  const Image fine("fine", dtype, n, c, height, width, fine_layout, goes_up);
  std::mt19937_64 random(of.seed());
  (goes_up ? coarse : fine).fill_normal(random);

  if (is_nails) {
    const Image &from = goes_up ? coarse : fine, &to = goes_up ? fine : coarse;
    const BedOfNails p{dtype, from.const_planes(), {}, scale, !goes_up, false};
    return same_bits(p, cuda::bed_of_nails2d, bed_of_nails2d, [](auto& q) -> Planes& { return q.output; }, to);
  }
  const NearestAxis vertical = nearest_axis(h, height, of.real("scale_h", 0));
  const NearestAxis horizontal = nearest_axis(w, width, of.real("scale_w", 0));
  if (goes_up) {
    const UpsampleNearest p{dtype, coarse.const_planes(), {}, vertical, horizontal, false};
    return same_bits(p, cuda::upsample_nearest2d, upsample_nearest2d, [](auto& q) -> Planes& { return q.output; }, fine);
  }
  const UpsampleNearestBackward p{dtype, fine.const_planes(), {}, vertical, horizontal};
  return same_bits(
      p, cuda::upsample_nearest2d_backward, upsample_nearest2d_backward, [](auto& q) -> Planes& { return q.grad_input; },
      coarse);
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
