// Runs the CUDA kernels of dice_ce_loss on the host execution and compares them with the CPU kernels (driver.h).
//
// Gaps between rows are NaN, and so are the logits of ignored pixels. With `poison` there is a NaN among the derivatives:
// ignored pixels still have no gradient.
#include "dice_ce_loss.h"

namespace {

using namespace segops;
using driver::Buffer, driver::Image, driver::LossCase, driver::kExact, driver::kNan;

class Run : public driver::Loss {
 public:
  Run(const LossCase& of, int64_t pixels, bool backward)
      : Loss(of, of.dtype, 1, pixels, of.layout, 1e-5), backward_(backward), grad_(plain_, "grad_logits") {
    in_ = plain();
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count(); ++i) {
      draw_pixel(i);
      const double outlier = i % 37 == 5 ? 40 : 1;
      for (int64_t k = 0; k < c_.c; ++k) {
        double x = normal(random_) * outlier;
        if (i % 8 == 3) x = std::round(x / 2);  // equal logits, for the argmax
        plain_.set(element_of(i, k), valid(i) ? x : kNan);
      }
    }
  }

  std::string operator()() {
    statistics();
    value();
    if (backward_) backward(1, c_.poison);
    return differences_.first;
  }

 private:
  int64_t element_of(int64_t pixel, int64_t k) const { return (pixel / pixels_ * c_.c + k) * pixels_ + pixel % pixels_; }

  void launch(const DiceCeLossStatistics& p) override {
    const Buffer scratch("scratch", cuda::dice_ce_loss_scratch_bytes(in_), true);
    differences_.check(cuda::dice_ce_loss_statistics(p, scratch.data(), nullptr), "statistics");
  }

  void launch(DiceCeLossBackward p) override {
    write_to(grad_, p);
    differences_.check(cuda::dice_ce_loss_backward(p, nullptr), "backward");
  }

  void compare_gradient(const Image& expected) override {
    const driver::Tolerance tolerance = driver::rounding(c_.dtype);
    for (int64_t i = 0; i < count(); ++i)
      for (int64_t k = 0; k < c_.c; ++k) {
        const int64_t e = element_of(i, k);
        differences_.compare("grad", e, grad_.get(e), valid(i) ? expected.get(e) : 0, valid(i) ? tolerance : kExact);
      }
    grad_.check_gaps(differences_);
  }

  void value() {
    if (!differences_.none()) return;
    const int64_t cells = c_.n * c_.c;
    const Buffer overlap("overlap", cells * 3 * 8, false), ce("ce", 16, false), loss("loss", 8, true);
    const Buffer parts("parts", 16, true), scores("scores", cells * 8, true), grad("grad_overlap", cells * 3 * 8, true);
    const Buffer grad_ce("grad_ce", 16, true);
    std::copy(overlap_.begin(), overlap_.end(), overlap.as<double>());
    std::memcpy(ce.data(), ce_.data(), 16);
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

  const bool backward_;
  const Image grad_;
};

std::string run(const driver::Case& of) { return Run(LossCase(of), of.integer("s", 64), of.flag("backward", true))(); }

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
