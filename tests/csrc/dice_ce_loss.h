// What both drivers of dice_ce_loss share: a case that is filled but for the logits, and compared with the CPU kernels.
#pragma once
#include "image.h"
#include "segops/dice_ce_loss.h"

namespace segops {
Status dice_ce_loss_statistics(const DiceCeLossStatistics&, const Parallel&);
Status dice_ce_loss_backward(const DiceCeLossBackward&, const Parallel&);
}  // namespace segops

namespace driver {

// What both drivers read of a line.
struct LossCase {
  explicit LossCase(const Case& of)
      : dtype(of.dtype("dtype", Dtype::float32)),
        label(of.dtype("label", Dtype::int64)),
        n(of.integer("n", 1)),
        c(of.integer("c", 3)),
        layout(layout_of(of)),
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
  int64_t n, c;
  Layout layout;  // of the logits and the gradient
  bool squared, weight, pixel_weight, map, confusion, overlap;
  bool poison;  // NaN where a driver says
  double smoothing, ignore;
  int64_t bad;  // one label in so many is bad; 0: none
  uint64_t seed;
};

// One case. A driver fills the logits that the CPU kernels read, and launches the CUDA kernels.
class Loss {
 protected:
  // The CPU kernels read logits of this type, size and layout; `single`: how far sums may lie apart that are not of float64.
  Loss(const LossCase& of, Dtype dtype, int64_t height, int64_t width, Layout layout, double single)
      : c_(of),
        pixels_(height * width),
        random_(of.seed),
        plain_("logits", dtype, of.n, of.c, height, width, layout, false),
        weight_("weight", of.c * 8, false),
        overlap_(static_cast<size_t>(of.n * 3 * of.c), 0),
        ce_(2),
        accumulated_(accumulated(of.dtype)),
        tolerance_(of_sums(of.dtype, single)),
        valid_(static_cast<size_t>(of.n * pixels_)),
        target_("target", of.n * pixels_ * bytes_of(of.label), false),
        pixel_weight_("pixel_weight", of.n * pixels_ * bytes_of(accumulated_), false) {
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
  }
  ~Loss() = default;

  virtual void launch(const segops::DiceCeLossStatistics& p) = 0;
  virtual void launch(segops::DiceCeLossBackward p) = 0;
  // `gradient`: the CPU kernels', of the logits that they read.
  virtual void compare_gradient(const Image& gradient) = 0;

  double draw(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
  int64_t count() const { return static_cast<int64_t>(valid_.size()); }
  bool valid(int64_t i) const { return valid_[static_cast<size_t>(i)]; }

  // Draws the label and the weight of a pixel.
  void draw_pixel(int64_t i, bool ignore = false) {
    int64_t label = static_cast<int64_t>(random_() % static_cast<uint64_t>(c_.c));
    if (draw(0, 1) < c_.ignore || ignore) label = in_.ignore_index;
    // uint8 has no other bad values where there are 255 classes or more.
    if (c_.bad && i % c_.bad == c_.bad / 2 && (c_.label != Dtype::uint8 || c_.c < 250)) label = c_.c + i % 3;
    valid_[static_cast<size_t>(i)] = label != in_.ignore_index && label < c_.c;
    set_element(target_.data(), c_.label, i, static_cast<double>(label));
    set_element(pixel_weight_.data(), accumulated_, i, draw(0, 2));
  }

  static void write_to(const Image& gradient, segops::DiceCeLossBackward& p) {
    const segops::Planes& planes = gradient.planes();
    p.grad_logits = planes.data;
    p.grad_stride_n = planes.stride_n, p.grad_stride_c = planes.stride_c, p.grad_stride_s = planes.stride_w;
  }

  // The inputs of the CPU kernels.
  segops::DiceCeLossInputs plain() const {
    segops::DiceCeLossInputs in = in_;
    const segops::Planes& p = plain_.planes();
    in.logits = p.data, in.logits_dtype = plain_.dtype();
    in.stride_n = p.stride_n, in.stride_c = p.stride_c, in.stride_s = p.stride_w;
    return in;
  }

  void statistics() {
    const int64_t cells = c_.c * c_.c;
    const Buffer overlap("overlap", c_.n * 3 * c_.c * 8, true), ce("ce", 16, true);
    const Buffer bad("bad_labels", sizeof(segops::BadData), true), confusion("confusion", cells * 8, true);
    const Buffer map("ce_map", count() * bytes_of(accumulated_), true);
    std::memset(confusion.data(), 0, confusion.bytes());
    segops::DiceCeLossStatistics p{in_,
                                   c_.overlap ? overlap.as<double>() : nullptr,
                                   ce.as<double>(),
                                   c_.map ? map.data() : nullptr,
                                   c_.confusion ? confusion.as<int64_t>() : nullptr,
                                   bad.as<segops::BadData>()};
    launch(p);
    if (!differences_.none()) return;

    std::vector<char> expected_map(map.bytes());
    std::vector<int64_t> expected_confusion(static_cast<size_t>(cells), 0);
    segops::BadData expected_bad{};
    p.in = plain();
    p.overlap = c_.overlap ? overlap_.data() : nullptr;
    p.ce = ce_.data();
    p.ce_map = c_.map ? expected_map.data() : nullptr;
    p.confusion = c_.confusion ? expected_confusion.data() : nullptr;
    p.bad_labels = &expected_bad;
    done(dice_ce_loss_statistics(p, kSerial));
    for (int64_t i = 0; c_.overlap && i < c_.n * 3 * c_.c; ++i)  // T counts pixels
      differences_.compare("overlap", i, overlap.as<double>()[i], overlap_[static_cast<size_t>(i)],
                           i / c_.c % 3 == 2 ? kExact : tolerance_);
    differences_.compare("ce", ce.data(), ce_.data(), Dtype::float64, 2, tolerance_);
    for (int64_t i = 0; c_.map && i < count(); ++i)
      differences_.compare("ce_map", i, element(map.data(), accumulated_, i), element(expected_map.data(), accumulated_, i),
                           valid(i) ? tolerance_ : kExact);
    if (c_.confusion)
      differences_.compare("confusion", confusion.data(), expected_confusion.data(), Dtype::int64, cells, kExact);
    differences_.compare("bad_labels", *bad.as<segops::BadData>(), expected_bad);
  }

  // scale: of the derivatives; poison: whether one of them is NaN.
  void backward(double scale, bool poison) {
    if (!differences_.none()) return;
    const Buffer grad_overlap("grad_overlap", c_.n * 3 * c_.c * 8, false), grad_ce("grad_ce", 16, false);
    for (int64_t i = 0; i < c_.n * 3 * c_.c; ++i) grad_overlap.as<double>()[i] = draw(-1, 1) * scale;
    if (poison) grad_overlap.as<double>()[c_.c] = kNan;  // of P, class 0, image 0
    grad_ce.as<double>()[0] = 0.7 * scale;
    segops::DiceCeLossBackward p{};
    p.in = in_;
    p.grad_overlap = c_.overlap ? grad_overlap.as<double>() : nullptr;
    p.grad_ce = grad_ce.as<double>();
    launch(p);
    if (!differences_.none()) return;

    const Image gradient(plain_, "expected");
    p.in = plain();
    write_to(gradient, p);
    done(dice_ce_loss_backward(p, kSerial));
    compare_gradient(gradient);
  }

  const LossCase c_;
  const int64_t pixels_;
  std::mt19937_64 random_;
  const Image plain_;
  const Buffer weight_;
  segops::DiceCeLossInputs in_{};
  std::vector<double> overlap_, ce_;  // the CPU kernels'
  Differences differences_;

 private:
  const Dtype accumulated_;
  const Tolerance tolerance_;
  std::vector<bool> valid_;
  const Buffer target_, pixel_weight_;
};

}  // namespace driver
