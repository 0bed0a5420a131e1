// What both drivers of dice_bce_loss share: the definition in long double, labels of every type with all that is bad, and a
// case that is filled and compared but for the logits.
#pragma once
#include "image.h"
#include "segops/dice_bce_loss.h"

namespace driver {

using Exact = long double;

// One element, by the formulas of segops/dice_bce_loss.h.
struct Definition {
  Exact x, t, q, w, gamma;

  Exact p() const { return 1 / (1 + std::exp(-x)); }
  Exact rest() const { return 1 / (1 + std::exp(x)); }
  static Exact softplus(Exact x) { return std::log1p(std::exp(-std::abs(x))) + std::max(x, Exact(0)); }
  Exact cross_entropy() const { return q * t * softplus(-x) + (1 - t) * softplus(x); }
  Exact missed() const { return std::max(p() * (1 - t) + rest() * t, Exact(0)); }
  Exact loss() const { return w * (gamma == 0 ? 1 : std::pow(missed(), gamma)) * cross_entropy(); }
  Exact slope() const {
    const Exact plain = (1 - t) * p() - q * t * rest();
    if (gamma == 0) return w * plain;
    if (missed() == 0) return 0;
    const Exact of_missed = (1 - 2 * t) * p() * rest();
    return w * (std::pow(missed(), gamma) * plain + gamma * std::pow(missed(), gamma - 1) * of_missed * cross_entropy());
  }
  // bce: the derivative with respect to the sum of losses, or 0 for none; overlap: those with respect to I and, `apart`
  // further, to P of the element's channel, or null.
  Exact gradient(double bce, const double* overlap, int64_t apart, bool squared) const {
    Exact result = bce != 0 ? bce * slope() : 0;
    if (overlap) result += (overlap[0] * t + overlap[apart] * (squared ? 2 * p() : 1)) * p() * rest();
    return result;
  }
};

// Where the sums [N, 3, C] have I of element i's channel, i of [N, C, S].
inline int64_t place_in_sums(int64_t i, int64_t channels, int64_t pixels) {
  return i / pixels / channels * 3 * channels + i / pixels % channels;
}

// What the statistics of [N, C, S] should be.
struct Sums {
  int64_t channels, pixels;
  bool squared;
  std::vector<Exact> overlap;
  Exact bce[2] = {0, 0};

  Sums(int64_t n, int64_t c, int64_t s, bool squared_)
      : channels(c), pixels(s), squared(squared_), overlap(static_cast<size_t>(n * 3 * c), 0) {}

  void add(int64_t i, const Definition& of) {
    Exact* const own = overlap.data() + place_in_sums(i, channels, pixels);
    own[0] += of.p() * of.t;
    own[channels] += squared ? of.p() * of.p() : of.p();
    own[2 * channels] += squared ? of.t * of.t : of.t;
    bce[0] += of.loss();
    bce[1] += of.w;
  }

  // found_overlap: null where there is none.
  void compare(Differences& differences, const double* found_overlap, const double* found_bce, Tolerance tolerance) const {
    for (size_t i = 0; found_overlap && i < overlap.size(); ++i)
      differences.compare("overlap", static_cast<int64_t>(i), found_overlap[i], static_cast<double>(overlap[i]), tolerance);
    for (int i = 0; i < 2; ++i) differences.compare("bce", i, found_bce[i], static_cast<double>(bce[i]), tolerance);
  }
};

// "hard", all 0 or 1, but for one in so many that is bad, and what is ignored.
struct Labels {
  Dtype dtype;
  double ignore_share;
  int64_t bad;  // one in so many; 0: none
  static constexpr int64_t kIgnored = 255;

  double draw(std::mt19937_64& random, int64_t i) const {
    const auto uniform = [&] { return std::uniform_real_distribution<double>(0, 1)(random); };
    if (uniform() < ignore_share) return kIgnored;
    const bool soft = dtype != Dtype::uint8;
    if (bad && i % bad == bad / 2) return !soft ? 2 : i % 3 == 0 ? kNan : i % 3 == 1 ? 1.0625 : -3;
    if (!soft || i % 3 == 0) return uniform() < 0.4;
    return i % 7 == 1 ? 1 + 1.0 / 128 : i % 7 == 3 ? -1.0 / 128 : uniform();
  }
  static bool ignored(double label, bool ignores) { return ignores && label == kIgnored; }
  static bool valid(double label) { return label >= -segops::kSoftLabelSlack && label <= 1 + segops::kSoftLabelSlack; }
  int64_t recorded(double label) const {
    if (dtype == Dtype::uint8) return static_cast<int64_t>(label);
    int64_t bits;
    std::memcpy(&bits, &label, 8);
    return bits;
  }
};

inline segops::Elements elements_of(const Image& image) {
  const segops::Planes& p = image.planes();
  return {p.data, p.stride_n, p.stride_c, p.stride_w};
}

// What both drivers read of a line; the shapes and the layouts but for that of the logits are a driver's own.
struct LossCase {
  explicit LossCase(const Case& of)
      : dtype(of.dtype("dtype", Dtype::float32)),
        labels{of.dtype("label", Dtype::uint8), of.real("ignore", 0), of.integer("bad", 0)},
        n(of.integer("n", 1)),
        c(of.integer("c", 3)),
        logits(layout_of(of)),
        squared(of.flag("squared")),
        positive(of.flag("pos_weight")),
        map(of.flag("map")),
        overlap(of.flag("overlap", true)),
        bce(of.flag("bce", true)),
        weights(of.text("weights", "none")),
        gamma(of.real("gamma", 0)),
        seed(of.seed()) {}

  Dtype dtype;
  Labels labels;
  int64_t n, c;
  int64_t h = 1, w = 1, H = 1, W = 1;  // of the logits and of the target
  Layout logits, of_grad, of_map, target, weight;
  bool squared, positive, map, overlap;
  bool bce;             // whether backward has a derivative of the cross-entropy
  std::string weights;  // "none", "each", "pixel"
  double gamma;
  uint64_t seed;
};

// One case, first on the CUDA kernels and then on the CPU's. A driver fills the logits, launches its kernels, and says how
// the gradient of the target's size comes back to that of the logits.
class Loss {
 public:
  std::string operator()() {
    for (const bool on_cpu : {false, true}) {
      on_cpu_ = on_cpu;
      statistics();
      if (differences_.none()) backward();
      if (!differences_.none()) return (on_cpu ? "CPU: " : "") + differences_.first;
    }
    return {};
  }

 protected:
  // `single`: how far sums may lie apart that are not of float64.
  Loss(const LossCase& of, double single)
      : c_(of),
        pixels_(of.H * of.W),
        tolerance_(of_sums(of.dtype, single)),
        random_(of.seed),
        logits_("logits", of.dtype, of.n, of.c, of.h, of.w, of.logits, false),
        elements_(static_cast<size_t>(of.n * of.c * pixels_)),
        target_("target", of.labels.dtype, of.n, of.c, of.H, of.W, of.target, false),
        weight_("pixel_weight", accumulated(of.dtype), of.n, of.weights == "pixel" ? 1 : of.c, of.H, of.W, of.weight, false),
        positive_("pos_weight", of.c * 8, false) {
    in_.logits_dtype = c_.dtype;
    in_.batch = c_.n, in_.channels = c_.c, in_.pixels = pixels_;
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
  }
  ~Loss() = default;

  virtual void launch(const segops::DiceBceLossStatistics& p) = 0;
  virtual void launch(segops::DiceBceLossBackward p, const Image& grad) = 0;
  virtual std::vector<Exact> of_logits(const std::vector<Exact>& gradient) const = 0;

  double draw(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
  int64_t count() const { return static_cast<int64_t>(elements_.size()); }
  Definition& element(int64_t i) { return elements_[static_cast<size_t>(i)]; }
  // t is NaN where the element does not count.
  bool valid(int64_t i) { return !std::isnan(element(i).t); }

  // Draws the label of an element, all of whose definition but the logit is known then.
  void draw_label(int64_t i, bool ignore = false) {
    target_.set(i, ignore ? Labels::kIgnored : c_.labels.draw(random_, i));
    const double label = target_.get(i);
    const bool ignored = Labels::ignored(label, in_.ignores), counts = !ignored && Labels::valid(label);
    if (!ignored && !counts && expected_bad_.count++ == 0) expected_bad_ = {1, i, c_.labels.recorded(label)};
    const int64_t plane = i / pixels_, of_weight = c_.weights == "pixel" ? plane / c_.c * pixels_ + i % pixels_ : i;
    element(i) = {kNan, counts ? label : kNan, c_.positive ? positive_.as<double>()[plane % c_.c] : 1,
                  c_.weights == "none" ? 1 : weight_.get(of_weight), c_.gamma};
  }

  const LossCase c_;
  const int64_t pixels_;
  const Tolerance tolerance_;
  std::mt19937_64 random_;
  const Image logits_;
  segops::DiceBceLossInputs in_{};
  Differences differences_;
  bool on_cpu_ = false;

 private:
  void statistics() {
    const Buffer overlap("overlap", c_.n * 3 * c_.c * 8, true), bce("bce", 16, true),
        bad("bad_labels", sizeof(segops::BadData), true);
    const Image map("bce_map", accumulated(c_.dtype), c_.n, c_.c, c_.H, c_.W, c_.of_map, true),
        expected_map(map, "expected");
    segops::DiceBceLossStatistics p{};
    p.in = in_;
    p.overlap = c_.overlap ? overlap.as<double>() : nullptr;
    p.bce = bce.as<double>();
    const segops::Elements of_map = elements_of(map);
    if (c_.map) p.bce_map = map.planes().data;
    p.map_stride_n = of_map.stride_n, p.map_stride_c = of_map.stride_c, p.map_stride_s = of_map.stride_s;
    p.bad_labels = bad.as<segops::BadData>();
    launch(p);
    if (!differences_.none()) return;

    Sums expected(c_.n, c_.c, pixels_, c_.squared);
    for (int64_t i = 0; i < count(); ++i) {
      expected_map.set(i, valid(i) ? static_cast<double>(element(i).loss()) : 0);
      if (valid(i)) expected.add(i, element(i));
    }
    expected.compare(differences_, p.overlap, p.bce, tolerance_);
    if (c_.map) map.compare(differences_, expected_map, tolerance_);
    differences_.compare("bad_labels", *p.bad_labels, expected_bad_);
  }

  void backward() {
    const Image grad("grad_logits", c_.dtype, c_.n, c_.c, c_.h, c_.w, c_.of_grad, true), expected(grad, "expected");
    const Buffer grad_overlap("grad_overlap", c_.n * 3 * c_.c * 8, false), grad_bce("grad_bce", 16, false);
    // A gradient that is summed over many pixels is of the size of one.
    const double scale = static_cast<double>(c_.h * c_.w) / static_cast<double>(std::max(pixels_, int64_t(1)));
    for (int64_t i = 0; i < c_.n * 3 * c_.c; ++i) grad_overlap.as<double>()[i] = draw(-1, 1) * scale;
    grad_bce.as<double>()[0] = 0.7 * scale;
    segops::DiceBceLossBackward p{};
    p.in = in_;
    p.grad_overlap = c_.overlap ? grad_overlap.as<double>() : nullptr;
    p.grad_bce = c_.bce ? grad_bce.as<double>() : nullptr;
    launch(p, grad);
    if (!differences_.none()) return;

    std::vector<Exact> gradient(elements_.size(), 0);
    for (int64_t i = 0; i < count(); ++i) {
      const double* const own = p.grad_overlap ? p.grad_overlap + place_in_sums(i, c_.c, pixels_) : nullptr;
      if (valid(i))
        gradient[static_cast<size_t>(i)] = element(i).gradient(p.grad_bce ? *p.grad_bce : 0, own, c_.c, c_.squared);
    }
    expected.fill(of_logits(gradient));
    grad.compare(differences_, expected, rounding(c_.dtype));
  }

  std::vector<Definition> elements_;
  const Image target_, weight_;
  const Buffer positive_;
  segops::BadData expected_bad_{0, 0, 0};
};

}  // namespace driver
