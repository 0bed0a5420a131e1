// Runs the CUDA kernels of dice_ce_loss on the host execution and compares them with the CPU kernels (driver.h).
//
// Gaps between rows are NaN, and so are the logits of ignored pixels.
#include "driver.h"

namespace segops {
Status dice_ce_loss_statistics(const DiceCeLossStatistics&, const Parallel&);
Status dice_ce_loss_backward(const DiceCeLossBackward&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Buffer, driver::Tolerance, driver::bytes_of, driver::element, driver::set_element, driver::kExact,
    driver::kNan, driver::kSerial;

struct Case {
  explicit Case(const driver::Case& of)
      : dtype(of.dtype("dtype", Dtype::float32)),
        label(of.dtype("label", Dtype::int64)),
        n(of.integer("n", 1)),
        c(of.integer("c", 3)),
        s(of.integer("s", 64)),
        planar(of.planar()),
        pad(of.integer("pad", 0)),
        offset(of.integer("offset", 0)),
        squared(of.flag("squared")),
        weight(of.flag("weight")),
        pixel_weight(of.flag("pixel_weight")),
        map(of.flag("map")),
        confusion(of.flag("confusion")),
        overlap(of.flag("overlap", true)),
        backward(of.flag("backward", true)),
        poison(of.flag("poison")),
        smoothing(of.real("smoothing", 0)),
        ignore(of.real("ignore", 0)),
        bad(of.integer("bad", 0)),
        seed(of.seed()) {}

  Dtype dtype, label;
  int64_t n, c, s;
  bool planar;
  int64_t pad;     // elements between planes, or between pixels where channels are last
  int64_t offset;  // of the logits and the gradient from an aligned address, in elements
  bool squared, weight, pixel_weight, map, confusion, overlap;
  bool backward;
  bool poison;  // a NaN among the derivatives: ignored pixels still have no gradient
  double smoothing, ignore;
  int64_t bad;  // one label in so many is bad; 0: none
  uint64_t seed;
};

class Run {
 public:
  explicit Run(const Case& of)
      : c_(of),
        accumulated_(driver::accumulated(of.dtype)),
        element_(bytes_of(of.dtype)),
        stride_c_(of.planar ? of.s + of.pad : 1),
        stride_s_(of.planar ? 1 : of.c + of.pad),
        stride_n_(of.planar ? of.c * stride_c_ : of.s * stride_s_),
        // The last row has no gap after it.
        elements_(of.n * stride_n_ - (of.n * of.s > 0 ? of.pad : 0)),
        random_(of.seed),
        valid_(static_cast<size_t>(of.n * of.s)),
        logits_("logits", elements_ * element_, false, of.offset * element_),
        target_("target", of.n * of.s * bytes_of(of.label), false),
        weight_("weight", of.c * 8, false),
        pixel_weight_("pixel_weight", of.n * of.s * bytes_of(accumulated_), false) {
    fill();
  }

  std::string operator()() {
    statistics();
    value();
    if (c_.backward) backward();
    return differences_.first;
  }

 private:
  double draw(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
  int64_t at(int64_t n, int64_t c, int64_t s) const { return n * stride_n_ + c * stride_c_ + s * stride_s_; }

  void fill() {
    in_.logits = logits_.data();
    in_.logits_dtype = c_.dtype;
    in_.batch = c_.n, in_.classes = c_.c, in_.pixels = c_.s;
    in_.stride_n = stride_n_, in_.stride_c = stride_c_, in_.stride_s = stride_s_;
    in_.target = target_.data();
    in_.target_dtype = c_.label;
    in_.weight = c_.weight ? weight_.as<double>() : nullptr;
    in_.pixel_weight = c_.pixel_weight ? pixel_weight_.data() : nullptr;
    in_.ignore_index = c_.label == Dtype::uint8 ? 255 : -100;
    in_.label_smoothing = c_.smoothing;
    in_.squared = c_.squared;
    for (int64_t k = 0; k < c_.c; ++k) weight_.as<double>()[k] = draw(0.5, 2);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < c_.n * c_.s; ++i) {
      int64_t label = static_cast<int64_t>(random_() % static_cast<uint64_t>(c_.c));
      if (draw(0, 1) < c_.ignore) label = in_.ignore_index;
      // uint8 has no other bad values where there are 255 classes or more.
      if (c_.bad && i % c_.bad == c_.bad / 2 && (c_.label != Dtype::uint8 || c_.c < 250)) label = c_.c + i % 3;
      valid_[static_cast<size_t>(i)] = label != in_.ignore_index && label < c_.c;
      set_element(target_.data(), c_.label, i, static_cast<double>(label));
      set_element(pixel_weight_.data(), accumulated_, i, draw(0, 2));
      const double outlier = i % 37 == 5 ? 40 : 1;
      for (int64_t k = 0; k < c_.c; ++k) {
        double x = normal(random_) * outlier;
        if (i % 8 == 3) x = std::round(x / 2);  // equal logits, for the argmax
        set_element(logits_.data(), c_.dtype, at(i / c_.s, k, i % c_.s), valid_[static_cast<size_t>(i)] ? x : kNan);
      }
    }
  }

  void statistics() {
    const int64_t sums = c_.n * 3 * c_.c, cells = c_.c * c_.c;
    const Buffer overlap("overlap", sums * 8, true), ce("ce", 16, true), bad("bad_labels", sizeof(BadData), true);
    const Buffer map("ce_map", c_.n * c_.s * bytes_of(accumulated_), true), confusion("confusion", cells * 8, true);
    const Buffer scratch("scratch", cuda::dice_ce_loss_scratch_bytes(in_), true);
    std::memset(confusion.data(), 0, confusion.bytes());
    DiceCeLossStatistics p{in_,
                           c_.overlap ? overlap.as<double>() : nullptr,
                           ce.as<double>(),
                           c_.map ? map.data() : nullptr,
                           c_.confusion ? confusion.as<int64_t>() : nullptr,
                           bad.as<BadData>()};
    differences_.check(cuda::dice_ce_loss_statistics(p, scratch.data(), nullptr), "statistics");
    if (!differences_.none()) return;

    overlap_.assign(static_cast<size_t>(sums), 0);
    std::vector<double> expected_ce(2);
    std::vector<char> expected_map(map.bytes());
    std::vector<int64_t> expected_confusion(static_cast<size_t>(cells), 0);
    BadData expected_bad{};
    p.overlap = c_.overlap ? overlap_.data() : nullptr;
    p.ce = expected_ce.data();
    p.ce_map = c_.map ? expected_map.data() : nullptr;
    p.confusion = c_.confusion ? expected_confusion.data() : nullptr;
    p.bad_labels = &expected_bad;
    if (dice_ce_loss_statistics(p, kSerial) != Status::ok) std::abort();
    const double unit = c_.dtype == Dtype::float64 ? 1e-12 : 1e-5;
    for (int64_t i = 0; c_.overlap && i < sums; ++i) {
      const double tolerance = i / c_.c % 3 == 2 ? 0 : unit;  // T counts pixels
      differences_.compare("overlap", i, overlap.as<double>()[i], overlap_[static_cast<size_t>(i)], {tolerance, tolerance});
    }
    for (int i = 0; i < 2; ++i) {
      differences_.compare("ce", i, ce.as<double>()[i], expected_ce[static_cast<size_t>(i)], {unit, unit});
      ce_[i] = expected_ce[static_cast<size_t>(i)];
    }
    for (int64_t i = 0; c_.map && i < c_.n * c_.s; ++i)
      differences_.compare("ce_map", i, element(map.data(), accumulated_, i), element(expected_map.data(), accumulated_, i),
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

  void value() {
    if (!differences_.none()) return;
    const int64_t cells = c_.n * c_.c;
    const Buffer overlap("overlap", cells * 3 * 8, false), ce("ce", 16, false), loss("loss", 8, true);
    const Buffer parts("parts", 16, true), scores("scores", cells * 8, true), grad("grad_overlap", cells * 3 * 8, true);
    const Buffer grad_ce("grad_ce", 16, true);
    std::copy(overlap_.begin(), overlap_.end(), overlap.as<double>());
    std::memcpy(ce.data(), ce_, 16);
    DiceCeLossValue p{};
    p.with_overlap = c_.overlap;
    p.batch = c_.n, p.classes = c_.c;
    p.overlap = overlap.as<double>();
    p.ce = ce.as<double>();
    p.dice_class_weight = c_.weight ? weight_.as<double>() : nullptr;
    p.num_i = 2, p.den_p = 1, p.den_t = 1, p.smooth = 1e-5, p.ce_weight = 1, p.dice_weight = 1;
    p.batch_dice = c_.squared;
    p.skip_absent = c_.ignore > 0;
    p.ce_mean = !c_.pixel_weight;
    p.loss = loss.as<double>();
    p.parts = parts.as<double>();
    p.scores = scores.as<double>();
    p.grad_overlap = grad.as<double>();
    p.grad_ce = grad_ce.as<double>();
    differences_.check(cuda::dice_ce_loss_value(p, nullptr), "value");
    DiceCeLossValue q = p;
    std::vector<double> out(static_cast<size_t>(1 + 2 + cells + cells * 3 + 2));
    q.loss = out.data(), q.parts = q.loss + 1, q.scores = q.parts + 2, q.grad_overlap = q.scores + cells;
    q.grad_ce = q.grad_overlap + 3 * cells;
    dice_ce_loss_value(q);
    const auto same = [&](const char* what, const double* found, const double* expected, int64_t count) {
      for (int64_t i = 0; i < count; ++i) differences_.compare(what, i, found[i], expected[i], {1e-12, 1e-15});
    };
    same("loss", p.loss, q.loss, 1);
    same("parts", p.parts, q.parts, 2);
    same("value grad_ce", p.grad_ce, q.grad_ce, 2);
    if (!c_.overlap) return;
    same("scores", p.scores, q.scores, dice_ce_loss::rows(p) * c_.c);
    same("value grad_overlap", p.grad_overlap, q.grad_overlap, 3 * cells);
  }

  void backward() {
    if (!differences_.none()) return;
    const Buffer grad("grad_logits", elements_ * element_, true, c_.offset * element_);
    const Buffer grad_overlap("grad_overlap", c_.n * 3 * c_.c * 8, false), grad_ce("grad_ce", 16, false);
    for (int64_t i = 0; i < c_.n * 3 * c_.c; ++i) grad_overlap.as<double>()[i] = draw(-1, 1);
    if (c_.poison) grad_overlap.as<double>()[c_.c] = kNan;  // of P, class 0, image 0
    grad_ce.as<double>()[0] = 0.7;
    DiceCeLossBackward p{};
    p.in = in_;
    p.grad_overlap = c_.overlap ? grad_overlap.as<double>() : nullptr;
    p.grad_ce = grad_ce.as<double>();
    p.grad_logits = grad.data();
    p.grad_stride_n = stride_n_, p.grad_stride_c = stride_c_, p.grad_stride_s = stride_s_;
    differences_.check(cuda::dice_ce_loss_backward(p, nullptr), "backward");
    if (!differences_.none()) return;

    std::vector<char> expected(grad.bytes(), static_cast<char>(0xff));
    p.grad_logits = expected.data();
    if (dice_ce_loss_backward(p, kSerial) != Status::ok) std::abort();
    const Tolerance tolerance = driver::rounding(c_.dtype);
    std::vector<bool> written(static_cast<size_t>(elements_), false);
    for (int64_t i = 0; i < c_.n * c_.s; ++i) {
      const bool valid = valid_[static_cast<size_t>(i)];
      for (int64_t k = 0; k < c_.c; ++k) {
        const int64_t e = at(i / c_.s, k, i % c_.s);
        written[static_cast<size_t>(e)] = true;
        const double found = element(grad.data(), c_.dtype, e);
        differences_.compare("grad", e, found, valid ? element(expected.data(), c_.dtype, e) : 0.0,
                             valid ? tolerance : kExact);
      }
    }
    for (int64_t e = 0; e < elements_; ++e)
      if (!written[static_cast<size_t>(e)] && !std::isnan(element(grad.data(), c_.dtype, e)))
        differences_.fail("a gap of the gradient was written, at element " + std::to_string(e));
  }

  const Case c_;
  const Dtype accumulated_;
  const int64_t element_, stride_c_, stride_s_, stride_n_, elements_;
  std::mt19937_64 random_;
  std::vector<bool> valid_;
  Buffer logits_, target_, weight_, pixel_weight_;
  DiceCeLossInputs in_{};
  std::vector<double> overlap_;
  double ce_[2] = {};
  driver::Differences differences_;
};

std::string run(const driver::Case& of) { return Run(Case(of))(); }

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
