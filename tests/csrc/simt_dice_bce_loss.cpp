// Runs the CUDA kernels of dice_bce_loss on the host execution, then its CPU kernels, and compares both with its definition.
//
// The logits of ignored elements are NaN.
#include "dice_bce_loss.h"

namespace segops {
Status dice_bce_loss_statistics(const DiceBceLossStatistics&, const Parallel&);
Status dice_bce_loss_backward(const DiceBceLossBackward&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Buffer, driver::Definition, driver::Exact, driver::Image, driver::Labels, driver::Layout, driver::Sums,
    driver::Tolerance, driver::elements_of, driver::kExact, driver::kNan, driver::kSerial;

struct Case {
  explicit Case(const driver::Case& of)
      : dtype(of.dtype("dtype", Dtype::float32)),
        labels{of.dtype("label", Dtype::uint8), of.real("ignore", 0), of.integer("bad", 0)},
        n(of.integer("n", 1)),
        c(of.integer("c", 3)),
        s(of.integer("s", 64)),
        layout{of.planar(), of.integer("pad", 0), of.integer("channel_gap", 0), of.integer("offset", 0)},
        result_layout{layout.planar, layout.pad, layout.channel_gap, of.integer("result_offset", layout.offset)},
        target_layout{layout.planar, of.integer("target_pad", 0), 0, of.integer("target_offset", 0)},
        squared(of.flag("squared")),
        positive(of.flag("pos_weight")),
        map(of.flag("map")),
        overlap(of.flag("overlap", true)),
        bce(of.flag("bce", true)),
        weights(of.text("weights", "none")),
        gamma(of.real("gamma", 0)),
        outliers(of.real("outliers", 1)),
        seed(of.seed()) {}

  Dtype dtype;
  Labels labels;
  int64_t n, c, s;
  Layout layout;         // of logits
  Layout result_layout;  // of gradient and map
  Layout target_layout;  // of target and weights
  bool squared, positive, map, overlap;
  bool bce;             // whether backward has a derivative of the cross-entropy
  std::string weights;  // "none", "each", "pixel"
  double gamma, outliers;
  uint64_t seed;
};

class Run {
 public:
  explicit Run(const Case& of)
      : c_(of),
        accumulated_(driver::accumulated(of.dtype)),
        random_(of.seed),
        logits_("logits", of.dtype, of.n, of.c, 1, of.s, of.layout, false),
        target_("target", of.labels.dtype, of.n, of.c, 1, of.s, of.target_layout, false),
        weight_("pixel_weight", accumulated_, of.n, of.weights == "pixel" ? 1 : of.c, 1, of.s,
                of.weights == "pixel" ? Layout{} : of.target_layout, false),
        positive_("pos_weight", of.c * 8, false),
        elements_(static_cast<size_t>(of.n * of.c * of.s)) {
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
  // NaN as x where the element does not count.
  bool valid(int64_t i) const { return !std::isnan(elements_[static_cast<size_t>(i)].t); }
  double draw(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }

  void fill() {
    in_.logits = elements_of(logits_);
    in_.logits_dtype = c_.dtype;
    in_.batch = c_.n, in_.channels = c_.c, in_.pixels = c_.s;
    in_.target = elements_of(target_);
    in_.target_dtype = c_.labels.dtype;
    in_.pos_weight = c_.positive ? positive_.as<double>() : nullptr;
    if (c_.weights != "none") in_.pixel_weight = elements_of(weight_);
    if (c_.weights == "pixel") in_.pixel_weight.stride_c = 0;
    in_.ignores = c_.labels.ignore_share > 0;
    in_.ignore_index = Labels::kIgnored;
    in_.focal_gamma = c_.gamma;
    in_.squared = c_.squared;
    for (int64_t k = 0; k < c_.c; ++k) positive_.as<double>()[k] = draw(0.5, 3);
    weight_.fill([&](int64_t) { return draw(0, 2); });
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < static_cast<int64_t>(elements_.size()); ++i) {
      target_.set(i, c_.labels.draw(random_, i));
      const double label = target_.get(i);
      const bool ignored = Labels::ignored(label, in_.ignores), counts = !ignored && Labels::valid(label);
      if (!ignored && !counts && expected_bad_.count++ == 0) expected_bad_ = {1, i, c_.labels.recorded(label)};
      logits_.set(i, counts ? normal(random_) * (i % 37 == 5 ? c_.outliers : 2) : kNan);
      const int64_t channel = i / c_.s % c_.c, of_weight = c_.weights == "pixel" ? i / c_.s / c_.c * c_.s + i % c_.s : i;
      elements_[static_cast<size_t>(i)] = {logits_.get(i), counts ? label : kNan,
                                           c_.positive ? positive_.as<double>()[channel] : 1,
                                           c_.weights == "none" ? 1 : weight_.get(of_weight), c_.gamma};
    }
  }

  void statistics() {
    const Buffer overlap("overlap", c_.n * 3 * c_.c * 8, true), bce("bce", 16, true),
        bad("bad_labels", sizeof(BadData), true);
    const Image map("bce_map", accumulated_, c_.n, c_.c, 1, c_.s, c_.result_layout, true), expected_map(map, "expected");
    DiceBceLossStatistics p{};
    p.in = in_;
    p.overlap = c_.overlap ? overlap.as<double>() : nullptr;
    p.bce = bce.as<double>();
    const Elements of_map = elements_of(map);
    if (c_.map) p.bce_map = map.planes().data;
    p.map_stride_n = of_map.stride_n, p.map_stride_c = of_map.stride_c, p.map_stride_s = of_map.stride_s;
    p.bad_labels = bad.as<BadData>();
    const Buffer scratch("scratch", cuda::dice_bce_loss_scratch_bytes(p), true);
    if (!on_cpu_)
      differences_.check(cuda::dice_bce_loss_statistics(p, scratch.data(), nullptr), "statistics");
    else if (dice_bce_loss_statistics(p, kSerial) != Status::ok)
      std::abort();
    if (!differences_.none()) return;

    Sums expected(c_.n, c_.c, c_.s, c_.squared);
    for (int64_t i = 0; i < static_cast<int64_t>(elements_.size()); ++i) {
      const Definition& of = elements_[static_cast<size_t>(i)];
      expected_map.set(i, valid(i) ? static_cast<double>(of.loss()) : 0);
      if (valid(i)) expected.add(i, of);
    }
    const double unit = c_.dtype == Dtype::float64 ? 1e-12 : 1e-5;
    const Tolerance tolerance{unit, unit};
    expected.compare(differences_, p.overlap, p.bce, tolerance);
    if (c_.map) map.compare(differences_, expected_map, tolerance);
    driver::compare_bad(differences_, *bad.as<BadData>(), expected_bad_);
  }

  void backward() {
    const Image grad("grad_logits", c_.dtype, c_.n, c_.c, 1, c_.s, c_.result_layout, true), expected(grad, "expected");
    const Buffer grad_overlap("grad_overlap", c_.n * 3 * c_.c * 8, false), grad_bce("grad_bce", 16, false);
    for (int64_t i = 0; i < c_.n * 3 * c_.c; ++i) grad_overlap.as<double>()[i] = draw(-1, 1);
    grad_bce.as<double>()[0] = 0.7;
    DiceBceLossBackward p{};
    p.in = in_;
    p.grad_overlap = c_.overlap ? grad_overlap.as<double>() : nullptr;
    p.grad_bce = c_.bce ? grad_bce.as<double>() : nullptr;
    const Elements of_grad = elements_of(grad);
    p.grad_logits = grad.planes().data;
    p.grad_stride_n = of_grad.stride_n, p.grad_stride_c = of_grad.stride_c, p.grad_stride_s = of_grad.stride_s;
    if (!on_cpu_)
      differences_.check(cuda::dice_bce_loss_backward(p, nullptr), "backward");
    else if (dice_bce_loss_backward(p, kSerial) != Status::ok)
      std::abort();
    if (!differences_.none()) return;

    expected.fill([&](int64_t i) {
      if (!valid(i)) return 0.0;
      const double* const own = c_.overlap ? grad_overlap.as<double>() + driver::place_in_sums(i, c_.c, c_.s) : nullptr;
      const Definition& of = elements_[static_cast<size_t>(i)];
      return static_cast<double>(of.gradient(c_.bce ? grad_bce.as<double>()[0] : 0, own, c_.c, c_.squared));
    });
    grad.compare(differences_, expected, driver::rounding(c_.dtype));
  }

  const Case c_;
  const Dtype accumulated_;
  std::mt19937_64 random_;
  const Image logits_, target_, weight_;
  Buffer positive_;
  std::vector<Definition> elements_;  // t is NaN where the element does not count
  DiceBceLossInputs in_{};
  BadData expected_bad_{0, 0, 0};
  driver::Differences differences_;
  bool on_cpu_ = false;
};

std::string run(const driver::Case& of) { return Run(Case(of))(); }

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
