// Runs the CUDA kernels of dice_bce_loss for coarse logits on the host execution, then its CPU kernels, and compares both
// with its definition on logits that are interpolated here; the gradient goes back through the transpose.
#include "bilinear.h"
#include "dice_bce_loss.h"

namespace segops {
Status dice_bce_loss_coarse_statistics(const DiceBceLossCoarseStatistics&, const Parallel&);
Status dice_bce_loss_coarse_backward(const DiceBceLossCoarseBackward&, const Parallel&);
}  // namespace segops

namespace {

using namespace segops;
using driver::Buffer, driver::Exact, driver::Image, driver::LossCase, driver::kNan, driver::kSerial;

LossCase case_of(const driver::Case& of) {
  LossCase c(of);
  c.h = of.integer("h", 5), c.w = of.integer("w", 7);
  c.H = of.integer("H", 11), c.W = of.integer("W", 23);
  c.of_grad = c.logits;
  c.target.channel_gap = of.integer("target_gap", 0);
  return c;
}

class Run : public driver::Loss {
 public:
  // poison: NaN among the logits that only ignored pixels read.
  Run(const LossCase& of, bool align, bool poison)
      : Loss(of, 2e-5),
        bilinear_{linear_axis(of.h, of.H, align, 0), linear_axis(of.w, of.W, align, 0)},
        coarse_{logits_.const_planes(), bilinear_.vertical, bilinear_.horizontal} {
    in_.ignores |= poison;
    std::normal_distribution<double> normal;
    logits_.fill([&](int64_t i) { return poison && i % (of.h * of.w) == 0 ? kNan : 2 * normal(random_); });
    for (int64_t i = 0; i < count(); ++i) {
      draw_label(i, poison && bilinear_.reads_first_of_plane(i));
      element(i).x = bilinear_.interpolated(logits_, i);
    }
  }

 private:
  void launch(const DiceBceLossStatistics& loss) override {
    const DiceBceLossCoarseStatistics p{loss, coarse_};
    if (on_cpu_) return driver::done(dice_bce_loss_coarse_statistics(p, kSerial));
    const Buffer scratch("scratch", cuda::dice_bce_loss_coarse_scratch_bytes(p), true);
    differences_.check(cuda::dice_bce_loss_coarse_statistics(p, scratch.data(), nullptr), "statistics");
  }

  void launch(DiceBceLossBackward loss, const Image& grad) override {
    const DiceBceLossCoarseBackward p{loss, coarse_, grad.planes()};
    if (on_cpu_) return driver::done(dice_bce_loss_coarse_backward(p, kSerial));
    differences_.check(cuda::dice_bce_loss_coarse_backward(p, nullptr), "backward");
  }

  std::vector<Exact> of_logits(const std::vector<Exact>& gradient) const override { return bilinear_.transposed(gradient); }

  const driver::Bilinear bilinear_;
  const CoarseLogits coarse_;
};

std::string run(const driver::Case& of) { return Run(case_of(of), of.flag("align"), of.flag("poison"))(); }

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
