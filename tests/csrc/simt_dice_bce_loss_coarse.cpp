// Runs the CUDA kernels of dice_bce_loss for coarse logits on the host execution, then its CPU kernels, and compares both
// with its definition on logits that are interpolated here; the gradient goes back through the transpose.
#include "dice_bce_loss.h"

namespace segops {
Status dice_bce_loss_coarse_statistics(const DiceBceLossCoarseStatistics&, const Parallel&);
Status dice_bce_loss_coarse_backward(const DiceBceLossCoarseBackward&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Buffer, driver::Definition, driver::Exact, driver::Image, driver::Labels, driver::Layout, driver::Sums,
    driver::Tolerance, driver::elements_of, driver::kNan, driver::kSerial;

struct Case {
  explicit Case(const driver::Case& of)
      : dtype(of.dtype("dtype", Dtype::float32)),
        labels{of.dtype("label", Dtype::uint8), of.real("ignore", 0), of.integer("bad", 0)},
        n(of.integer("n", 1)),
        c(of.integer("c", 3)),
        h(of.integer("h", 5)),
        w(of.integer("w", 7)),
        H(of.integer("H", 11)),
        W(of.integer("W", 23)),
        align(of.flag("align")),
        layout{of.planar(), of.integer("pad", 0), of.integer("channel_gap", 0), of.integer("offset", 0)},
        target_gap(of.integer("target_gap", 0)),
        squared(of.flag("squared")),
        positive(of.flag("pos_weight")),
        map(of.flag("map")),
        overlap(of.flag("overlap", true)),
        bce(of.flag("bce", true)),
        poison(of.flag("poison")),
        weights(of.text("weights", "none")),
        gamma(of.real("gamma", 0)),
        seed(of.seed()) {}

  Dtype dtype;
  Labels labels;
  int64_t n, c, h, w, H, W;
  bool align;
  Layout layout;       // of logits and gradient
  int64_t target_gap;  // planes between the images of the target
  bool squared, positive, map, overlap;
  bool bce;             // whether backward has a derivative of the cross-entropy
  bool poison;          // NaN among the logits that only ignored pixels read
  std::string weights;  // "none", "each", "pixel"
  double gamma;
  uint64_t seed;
};

class Run {
 public:
  explicit Run(const Case& of)
      : c_(of),
        fine_(driver::accumulated(of.dtype)),
        pixels_(of.H * of.W),
        random_(of.seed),
        logits_("logits", of.dtype, of.n, of.c, of.h, of.w, of.layout, false),
        target_("target", of.labels.dtype, of.n, of.c, of.H, of.W, Layout{true, 0, of.target_gap, 0}, false),
        weight_("pixel_weight", fine_, of.n, of.weights == "pixel" ? 1 : of.c, of.H, of.W, Layout{}, false),
        positive_("pos_weight", of.c * 8, false),
        vertical_(linear_axis(of.h, of.H, of.align, 0)),
        horizontal_(linear_axis(of.w, of.W, of.align, 0)),
        elements_(static_cast<size_t>(of.n * of.c * pixels_)) {
    fill();
  }

  std::string operator()() {
    for (const bool on_cpu : {false, true}) {
      on_cpu_ = on_cpu;
      if (differences_.none()) statistics();
      if (differences_.none()) backward();
    }
    return differences_.first.empty() || !on_cpu_ ? differences_.first : "CPU: " + differences_.first;
  }

 private:
  bool valid(int64_t i) const { return !std::isnan(elements_[static_cast<size_t>(i)].t); }
  double draw(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }

  void fill() {
    in_.logits_dtype = c_.dtype;
    in_.batch = c_.n, in_.channels = c_.c, in_.pixels = pixels_;
    in_.target = elements_of(target_);
    in_.target_dtype = c_.labels.dtype;
    in_.pos_weight = c_.positive ? positive_.as<double>() : nullptr;
    if (c_.weights != "none") in_.pixel_weight = elements_of(weight_);
    if (c_.weights == "pixel") in_.pixel_weight.stride_c = 0;
    in_.ignores = c_.labels.ignore_share > 0 || c_.poison;
    in_.ignore_index = Labels::kIgnored;
    in_.focal_gamma = c_.gamma;
    in_.squared = c_.squared;
    for (int64_t k = 0; k < c_.c; ++k) positive_.as<double>()[k] = draw(0.5, 3);
    weight_.fill([&](int64_t) { return draw(0, 2); });
    std::normal_distribution<double> normal;
    logits_.fill([&](int64_t i) { return c_.poison && i % (c_.h * c_.w) == 0 ? kNan : 2 * normal(random_); });
    for (int64_t i = 0; i < static_cast<int64_t>(elements_.size()); ++i) {
      const bool poisoned = c_.poison && tap(vertical_, i % pixels_ / c_.W).low == 0 && tap(horizontal_, i % c_.W).low == 0;
      target_.set(i, poisoned ? Labels::kIgnored : c_.labels.draw(random_, i));
      const double label = target_.get(i);
      const bool ignored = Labels::ignored(label, in_.ignores), counts = !ignored && Labels::valid(label);
      if (!ignored && !counts && expected_bad_.count++ == 0) expected_bad_ = {1, i, c_.labels.recorded(label)};
      const int64_t plane = i / pixels_, of_weight = c_.weights == "pixel" ? plane / c_.c * pixels_ + i % pixels_ : i;
      elements_[static_cast<size_t>(i)] = {interpolated(i), counts ? label : kNan,
                                           c_.positive ? positive_.as<double>()[plane % c_.c] : 1,
                                           c_.weights == "none" ? 1 : weight_.get(of_weight), c_.gamma};
    }
  }

  static LinearTap tap(const LinearAxis& axis, int64_t i) { return linear_tap(axis, i); }

  // In double: 32-bit weights are part of what the kernels may round.
  double interpolated(int64_t i) const {
    const LinearTap y = tap(vertical_, i % pixels_ / c_.W), x = tap(horizontal_, i % c_.W);
    const auto row = [&](int64_t r) {
      const int64_t from = (i / pixels_ * c_.h + r) * c_.w;
      return (1 - x.weight) * logits_.get(from + x.low) + x.weight * logits_.get(from + x.high);
    };
    return (1 - y.weight) * row(y.low) + y.weight * row(y.high);
  }

  void statistics() {
    const Buffer overlap("overlap", c_.n * 3 * c_.c * 8, true), bce("bce", 16, true),
        bad("bad_labels", sizeof(BadData), true);
    const Image map("bce_map", fine_, c_.n, c_.c, c_.H, c_.W, Layout{}, true), expected_map(map, "expected");
    DiceBceLossCoarseStatistics p{{}, {logits_.const_planes(), vertical_, horizontal_}};
    p.loss.in = in_;
    p.loss.overlap = c_.overlap ? overlap.as<double>() : nullptr;
    p.loss.bce = bce.as<double>();
    const Elements of_map = elements_of(map);
    if (c_.map) p.loss.bce_map = map.planes().data;
    p.loss.map_stride_n = of_map.stride_n, p.loss.map_stride_c = of_map.stride_c, p.loss.map_stride_s = of_map.stride_s;
    p.loss.bad_labels = bad.as<BadData>();
    const Buffer scratch("scratch", cuda::dice_bce_loss_coarse_scratch_bytes(p), true);
    if (!on_cpu_)
      differences_.check(cuda::dice_bce_loss_coarse_statistics(p, scratch.data(), nullptr), "statistics");
    else if (dice_bce_loss_coarse_statistics(p, kSerial) != Status::ok)
      std::abort();
    if (!differences_.none()) return;

    Sums expected(c_.n, c_.c, pixels_, c_.squared);
    for (int64_t i = 0; i < static_cast<int64_t>(elements_.size()); ++i) {
      const Definition& of = elements_[static_cast<size_t>(i)];
      expected_map.set(i, valid(i) ? static_cast<double>(of.loss()) : 0);
      if (valid(i)) expected.add(i, of);
    }
    const double unit = c_.dtype == Dtype::float64 ? 1e-12 : 2e-5;
    const Tolerance tolerance{unit, unit};
    expected.compare(differences_, p.loss.overlap, p.loss.bce, tolerance);
    if (c_.map) map.compare(differences_, expected_map, tolerance);
    driver::compare_bad(differences_, *bad.as<BadData>(), expected_bad_);
  }

  void backward() {
    const Image grad("grad_logits", c_.dtype, c_.n, c_.c, c_.h, c_.w, c_.layout, true), expected(grad, "expected");
    const Buffer grad_overlap("grad_overlap", c_.n * 3 * c_.c * 8, false), grad_bce("grad_bce", 16, false);
    // Of a gradient that is summed over many pixels, so that its size is that of one.
    const double scale = static_cast<double>(c_.h * c_.w) / static_cast<double>(pixels_);
    for (int64_t i = 0; i < c_.n * 3 * c_.c; ++i) grad_overlap.as<double>()[i] = draw(-1, 1) * scale;
    grad_bce.as<double>()[0] = 0.7 * scale;
    DiceBceLossCoarseBackward p{{}, {logits_.const_planes(), vertical_, horizontal_}, grad.planes()};
    p.loss.in = in_;
    p.loss.grad_overlap = c_.overlap ? grad_overlap.as<double>() : nullptr;
    p.loss.grad_bce = c_.bce ? grad_bce.as<double>() : nullptr;
    if (!on_cpu_)
      differences_.check(cuda::dice_bce_loss_coarse_backward(p, nullptr), "backward");
    else if (dice_bce_loss_coarse_backward(p, kSerial) != Status::ok)
      std::abort();
    if (!differences_.none()) return;

    std::vector<Exact> sums(static_cast<size_t>(grad.count()), 0);
    for (int64_t i = 0; i < static_cast<int64_t>(elements_.size()); ++i) {
      if (!valid(i)) continue;
      const Definition& of = elements_[static_cast<size_t>(i)];
      const int64_t plane = i / pixels_;
      const double* const own = c_.overlap ? grad_overlap.as<double>() + driver::place_in_sums(i, c_.c, pixels_) : nullptr;
      const Exact g = of.gradient(c_.bce ? grad_bce.as<double>()[0] : 0, own, c_.c, c_.squared);
      const LinearTap y = tap(vertical_, i % pixels_ / c_.W), x = tap(horizontal_, i % c_.W);
      const auto add = [&](int64_t row, int64_t column, double weight) {
        sums[static_cast<size_t>((plane * c_.h + row) * c_.w + column)] += weight * g;
      };
      add(y.low, x.low, (1 - y.weight) * (1 - x.weight));
      add(y.low, x.high, (1 - y.weight) * x.weight);
      add(y.high, x.low, y.weight * (1 - x.weight));
      add(y.high, x.high, y.weight * x.weight);
    }
    expected.fill([&](int64_t i) { return static_cast<double>(sums[static_cast<size_t>(i)]); });
    grad.compare(differences_, expected, driver::rounding(c_.dtype));
  }

  const Case c_;
  const Dtype fine_;  // of interpolated logits
  const int64_t pixels_;
  std::mt19937_64 random_;
  const Image logits_, target_, weight_;
  Buffer positive_;
  const LinearAxis vertical_, horizontal_;
  std::vector<Definition> elements_;  // t is NaN where the element does not count
  DiceBceLossInputs in_{};
  BadData expected_bad_{0, 0, 0};
  driver::Differences differences_;
  bool on_cpu_ = false;
};

std::string run(const driver::Case& of) { return Run(Case(of))(); }

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
