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
using driver::Buffer, driver::Exact, driver::Image, driver::Layout, driver::LossCase, driver::elements_of, driver::kNan,
    driver::kSerial;

LossCase case_of(const driver::Case& of) {
  LossCase c(of);
  c.w = c.W = of.integer("s", 64);
  c.of_grad = c.logits;
  c.of_grad.offset = of.integer("result_offset", c.logits.offset);
  c.of_map = c.of_grad;
  c.target = {c.logits.planar, of.integer("target_pad", 0), 0, of.integer("target_offset", 0)};
  if (c.weights != "pixel") c.weight = c.target;
  return c;
}

class Run : public driver::Loss {
 public:
  Run(const LossCase& of, double outliers) : Loss(of, 1e-5) {
    in_.logits = elements_of(logits_);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count(); ++i) {
      draw_label(i);
      logits_.set(i, valid(i) ? normal(random_) * (i % 37 == 5 ? outliers : 2) : kNan);
      element(i).x = logits_.get(i);
    }
  }

 private:
  void launch(const DiceBceLossStatistics& p) override {
    if (on_cpu_) return driver::done(dice_bce_loss_statistics(p, kSerial));
    const Buffer scratch("scratch", cuda::dice_bce_loss_scratch_bytes(p), true);
    differences_.check(cuda::dice_bce_loss_statistics(p, scratch.data(), nullptr), "statistics");
  }

  void launch(DiceBceLossBackward p, const Image& grad) override {
    const Elements of_grad = elements_of(grad);
    p.grad_logits = grad.planes().data;
    p.grad_stride_n = of_grad.stride_n, p.grad_stride_c = of_grad.stride_c, p.grad_stride_s = of_grad.stride_s;
    if (on_cpu_) return driver::done(dice_bce_loss_backward(p, kSerial));
    differences_.check(cuda::dice_bce_loss_backward(p, nullptr), "backward");
  }

  std::vector<Exact> of_logits(const std::vector<Exact>& gradient) const override { return gradient; }
};

std::string run(const driver::Case& of) { return Run(case_of(of), of.real("outliers", 1))(); }

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
