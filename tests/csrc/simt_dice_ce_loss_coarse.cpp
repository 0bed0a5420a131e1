// Runs the CUDA kernels of dice_ce_loss for coarse logits on the host execution, and compares them with the plain CPU
// kernels on logits that are interpolated here; the gradient goes back through the transpose.
#include "image.h"
#include "segops/dice_ce_loss_coarse.h"

namespace segops {
Status dice_ce_loss_statistics(const DiceCeLossStatistics&, const Parallel&);
Status dice_ce_loss_backward(const DiceCeLossBackward&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Buffer, driver::Image, driver::Tolerance, driver::bytes_of, driver::element, driver::set_element,
    driver::kExact, driver::kNan, driver::kSerial;

struct Case {
  explicit Case(const driver::Case& of)
      : dtype(of.dtype("dtype", Dtype::float32)),
        label(of.dtype("label", Dtype::int64)),
        n(of.integer("n", 1)),
        c(of.integer("c", 3)),
        h(of.integer("h", 5)),
        w(of.integer("w", 7)),
        H(of.integer("H", 11)),
        W(of.integer("W", 23)),
        align(of.flag("align")),
        layout{of.planar(), of.integer("pad", 0), of.integer("channel_gap", 0), of.integer("offset", 0)},
        squared(of.flag("squared")),
        weight(of.flag("weight")),
        pixel_weight(of.flag("pixel_weight")),
        map(of.flag("map")),
        confusion(of.flag("confusion")),
        overlap(of.flag("overlap", true)),
        poison(of.flag("poison")),
        smoothing(of.real("smoothing", 0)),
        ignore(of.real("ignore", 0)),
        bad(of.integer("bad", 0)),
        seed(of.seed()) {}

  Dtype dtype, label;
  int64_t n, c, h, w, H, W;
  bool align;
  driver::Layout layout;
  bool squared, weight, pixel_weight, map, confusion, overlap;
  bool poison;  // NaN among the logits that only ignored pixels read: they are ignored whole
  double smoothing, ignore;
  int64_t bad;  // one label in so many is bad; 0: none
  uint64_t seed;
};

class Run {
 public:
  explicit Run(const Case& of)
      : c_(of),
        fine_(driver::accumulated(of.dtype)),
        pixels_(of.H * of.W),
        random_(of.seed),
        valid_(static_cast<size_t>(of.n * pixels_)),
        logits_("logits", of.dtype, of.n, of.c, of.h, of.w, of.layout, false),
        interpolated_(static_cast<size_t>(of.n * of.c * pixels_ * bytes_of(fine_))),
        target_("target", of.n * pixels_ * bytes_of(of.label), false),
        weight_("weight", of.c * 8, false),
        pixel_weight_("pixel_weight", of.n * pixels_ * bytes_of(fine_), false),
        coarse_{logits_.const_planes(), linear_axis(of.h, of.H, of.align, 0), linear_axis(of.w, of.W, of.align, 0)} {
    fill();
    interpolate();
  }

  std::string operator()() {
    statistics();
    if (differences_.none()) backward();
    return differences_.first;
  }

 private:
  double draw(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }

  void fill() {
    in_.logits_dtype = c_.dtype;
    in_.batch = c_.n, in_.classes = c_.c, in_.pixels = pixels_;
    in_.target = target_.data();
    in_.target_dtype = c_.label;
    in_.weight = c_.weight ? weight_.as<double>() : nullptr;
    in_.pixel_weight = c_.pixel_weight ? pixel_weight_.data() : nullptr;
    in_.ignore_index = c_.label == Dtype::uint8 ? 255 : -100;
    in_.label_smoothing = c_.smoothing;
    in_.squared = c_.squared;
    for (int64_t k = 0; k < c_.c; ++k) weight_.as<double>()[k] = draw(0.5, 2);
    logits_.fill_normal(random_);
    for (int64_t i = 0; i < c_.n * pixels_; ++i) {
      int64_t label = static_cast<int64_t>(random_() % static_cast<uint64_t>(c_.c));
      if (draw(0, 1) < c_.ignore) label = in_.ignore_index;
      if (c_.poison && reads_first(i)) label = in_.ignore_index;
      if (c_.bad && i % c_.bad == c_.bad / 2 && (c_.label != Dtype::uint8 || c_.c < 250)) label = c_.c + i % 3;
      valid_[static_cast<size_t>(i)] = label != in_.ignore_index && label < c_.c;
      set_element(target_.data(), c_.label, i, static_cast<double>(label));
      set_element(pixel_weight_.data(), fine_, i, draw(0, 2));
    }
    for (int64_t plane = 0; c_.poison && plane < c_.n * c_.c; ++plane) logits_.set(plane * c_.h * c_.w, kNan);
  }

  // Whether a pixel's logits depend on the first cell.
  bool reads_first(int64_t i) const {
    return linear_tap(coarse_.vertical, i % pixels_ / c_.W).low == 0 && linear_tap(coarse_.horizontal, i % c_.W).low == 0;
  }

  double coarse_at(int64_t plane, int64_t y, int64_t x) const { return logits_.get((plane * c_.h + y) * c_.w + x); }

  void interpolate() {
    for (int64_t plane = 0; plane < c_.n * c_.c; ++plane)
      for (int64_t i = 0; i < pixels_; ++i) {
        const LinearTap y = linear_tap(coarse_.vertical, i / c_.W), x = linear_tap(coarse_.horizontal, i % c_.W);
        const auto row = [&](int64_t r) {
          return (1 - x.weight) * coarse_at(plane, r, x.low) + x.weight * coarse_at(plane, r, x.high);
        };
        set_element(interpolated_.data(), fine_, plane * pixels_ + i, (1 - y.weight) * row(y.low) + y.weight * row(y.high));
      }
  }

  // The same inputs for the plain kernels.
  DiceCeLossInputs plain() const {
    DiceCeLossInputs in = in_;
    in.logits = interpolated_.data();
    in.logits_dtype = fine_;
    in.stride_n = c_.c * pixels_, in.stride_c = pixels_, in.stride_s = 1;
    return in;
  }

  void statistics() {
    const int64_t sums = c_.n * 3 * c_.c, cells = c_.c * c_.c;
    const Buffer overlap("overlap", sums * 8, true), ce("ce", 16, true), bad("bad_labels", sizeof(BadData), true);
    const Buffer map("ce_map", c_.n * pixels_ * bytes_of(fine_), true), confusion("confusion", cells * 8, true);
    std::memset(confusion.data(), 0, confusion.bytes());
    DiceCeLossStatistics p{in_,
                           c_.overlap ? overlap.as<double>() : nullptr,
                           ce.as<double>(),
                           c_.map ? map.data() : nullptr,
                           c_.confusion ? confusion.as<int64_t>() : nullptr,
                           bad.as<BadData>()};
    const DiceCeLossCoarseStatistics coarse{p, coarse_};
    const Buffer scratch("scratch", cuda::dice_ce_loss_coarse_scratch_bytes(coarse), true);
    differences_.check(cuda::dice_ce_loss_coarse_statistics(coarse, scratch.data(), nullptr), "statistics");
    if (!differences_.none()) return;

    std::vector<double> expected_overlap(static_cast<size_t>(sums)), expected_ce(2);
    std::vector<char> expected_map(map.bytes());
    std::vector<int64_t> expected_confusion(static_cast<size_t>(cells), 0);
    BadData expected_bad{};
    p.in = plain();
    p.overlap = c_.overlap ? expected_overlap.data() : nullptr;
    p.ce = expected_ce.data();
    p.ce_map = c_.map ? expected_map.data() : nullptr;
    p.confusion = c_.confusion ? expected_confusion.data() : nullptr;
    p.bad_labels = &expected_bad;
    if (dice_ce_loss_statistics(p, kSerial) != Status::ok) std::abort();
    // The plain kernels take float for exact; 16-bit exponentials are of the hardware's precision.
    const double unit = c_.dtype == Dtype::float64 ? 1e-12 : 2e-5;
    for (int64_t i = 0; c_.overlap && i < sums; ++i) {
      const double tolerance = i / c_.c % 3 == 2 ? 0 : unit;  // T counts pixels
      differences_.compare("overlap", i, overlap.as<double>()[i], expected_overlap[static_cast<size_t>(i)],
                           {tolerance, tolerance});
    }
    for (int i = 0; i < 2; ++i)
      differences_.compare("ce", i, ce.as<double>()[i], expected_ce[static_cast<size_t>(i)], {unit, unit});
    for (int64_t i = 0; c_.map && i < c_.n * pixels_; ++i)
      differences_.compare("ce_map", i, element(map.data(), fine_, i), element(expected_map.data(), fine_, i),
                           valid_[static_cast<size_t>(i)] ? Tolerance{unit, unit} : kExact);
    for (int64_t i = 0; c_.confusion && i < cells; ++i)
      differences_.compare("confusion", i, static_cast<double>(confusion.as<int64_t>()[i]),
                           static_cast<double>(expected_confusion[static_cast<size_t>(i)]), kExact);
    const BadData& found = *bad.as<BadData>();
    differences_.compare("bad_labels", 0, static_cast<double>(found.count), static_cast<double>(expected_bad.count), kExact);
    if (expected_bad.count == 0) return;
    differences_.compare("bad_labels", 1, static_cast<double>(found.position), static_cast<double>(expected_bad.position),
                         kExact);
    differences_.compare("bad_labels", 2, static_cast<double>(found.value), static_cast<double>(expected_bad.value), kExact);
  }

  void backward() {
    const Image grad("grad_logits", c_.dtype, c_.n, c_.c, c_.h, c_.w, c_.layout, true), expected(grad, "expected");
    const Buffer grad_overlap("grad_overlap", c_.n * 3 * c_.c * 8, false), grad_ce("grad_ce", 16, false);
    // Of a gradient that is summed over many pixels, so that its size is that of one.
    const double scale = static_cast<double>(c_.h * c_.w) / static_cast<double>(pixels_);
    for (int64_t i = 0; i < c_.n * 3 * c_.c; ++i) grad_overlap.as<double>()[i] = draw(-1, 1) * scale;
    grad_ce.as<double>()[0] = 0.7 * scale;
    DiceCeLossBackward p{};
    p.in = in_;
    p.grad_overlap = c_.overlap ? grad_overlap.as<double>() : nullptr;
    p.grad_ce = grad_ce.as<double>();
    differences_.check(cuda::dice_ce_loss_coarse_backward({p, coarse_, grad.planes()}, nullptr), "backward");
    if (!differences_.none()) return;

    std::vector<char> fine(interpolated_.size());
    p.in = plain();
    p.grad_logits = fine.data();
    p.grad_stride_n = p.in.stride_n, p.grad_stride_c = p.in.stride_c, p.grad_stride_s = 1;
    if (dice_ce_loss_backward(p, kSerial) != Status::ok) std::abort();
    std::vector<double> sums(static_cast<size_t>(grad.count()), 0);
    for (int64_t plane = 0; plane < c_.n * c_.c; ++plane)
      for (int64_t i = 0; i < pixels_; ++i) {
        const LinearTap y = linear_tap(coarse_.vertical, i / c_.W), x = linear_tap(coarse_.horizontal, i % c_.W);
        const double g = element(fine.data(), fine_, plane * pixels_ + i);
        const auto add = [&](int64_t row, int64_t column, double weight) {
          sums[static_cast<size_t>((plane * c_.h + row) * c_.w + column)] += weight * g;
        };
        add(y.low, x.low, (1 - y.weight) * (1 - x.weight));
        add(y.low, x.high, (1 - y.weight) * x.weight);
        add(y.high, x.low, y.weight * (1 - x.weight));
        add(y.high, x.high, y.weight * x.weight);
      }
    expected.fill([&](int64_t i) { return sums[static_cast<size_t>(i)]; });
    grad.compare(differences_, expected, driver::rounding(c_.dtype));
  }

  const Case c_;
  const Dtype fine_;  // of interpolated logits
  const int64_t pixels_;
  std::mt19937_64 random_;
  std::vector<bool> valid_;
  const Image logits_;
  std::vector<char> interpolated_;
  Buffer target_, weight_, pixel_weight_;
  const CoarseLogits coarse_;
  DiceCeLossInputs in_{};
  driver::Differences differences_;
};

std::string run(const driver::Case& of) { return Run(Case(of))(); }

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
