// Runs the CUDA kernels of dice_ce_loss for coarse logits on the host execution, and compares them with the plain CPU
// kernels on logits that are interpolated here; the gradient goes back through the transpose.
//
// With `poison` there is a NaN among the logits that only ignored pixels read: they are ignored whole.
#include "bilinear.h"
#include "dice_ce_loss.h"
#include "segops/dice_ce_loss_coarse.h"

namespace {

using namespace segops;
using driver::Bilinear, driver::Buffer, driver::Image, driver::Layout, driver::LossCase, driver::kNan;

class Run : public driver::Loss {
 public:
  // The plain kernels take float for exact; 16-bit exponentials are of the hardware's precision.
  Run(const LossCase& of, const Bilinear& bilinear)
      : Loss(of, driver::accumulated(of.dtype), bilinear.vertical.out, bilinear.horizontal.out, Layout{}, 2e-5),
        bilinear_(bilinear),
        logits_("logits", of.dtype, of.n, of.c, bilinear.vertical.in, bilinear.horizontal.in, of.layout, false),
        grad_(logits_, "grad_logits"),
        coarse_{logits_.const_planes(), bilinear.vertical, bilinear.horizontal} {
    logits_.fill_normal(random_);
    for (int64_t i = 0; i < count(); ++i) draw_pixel(i, c_.poison && bilinear.reads_first_of_plane(i));
    for (int64_t plane = 0; c_.poison && plane < c_.n * c_.c; ++plane) logits_.set(plane * cells(), kNan);
    plain_.fill([&](int64_t i) { return bilinear.interpolated(logits_, i); });
  }

  std::string operator()() {
    statistics();
    // Of a gradient that is summed over many pixels, so that its size is that of one.
    backward(static_cast<double>(cells()) / static_cast<double>(pixels_), false);
    return differences_.first;
  }

 private:
  int64_t cells() const { return bilinear_.vertical.in * bilinear_.horizontal.in; }

  void launch(const DiceCeLossStatistics& loss) override {
    const DiceCeLossCoarseStatistics p{loss, coarse_};
    const Buffer scratch("scratch", cuda::dice_ce_loss_coarse_scratch_bytes(p), true);
    differences_.check(cuda::dice_ce_loss_coarse_statistics(p, scratch.data(), nullptr), "statistics");
  }

  void launch(DiceCeLossBackward loss) override {
    differences_.check(cuda::dice_ce_loss_coarse_backward({loss, coarse_, grad_.planes()}, nullptr), "backward");
  }

  void compare_gradient(const Image& gradient) override {
    const Image expected(grad_, "expected");
    expected.fill(bilinear_.transposed(driver::numbers_of(gradient)));
    grad_.compare(differences_, expected, driver::rounding(c_.dtype));
  }

  const Bilinear bilinear_;
  const Image logits_, grad_;
  const CoarseLogits coarse_;
};

std::string run(const driver::Case& of) {
  const bool align = of.flag("align");
  const Bilinear bilinear{linear_axis(of.integer("h", 5), of.integer("H", 11), align, 0),
                          linear_axis(of.integer("w", 7), of.integer("W", 23), align, 0)};
  return Run(LossCase(of), bilinear)();
}

}  // namespace

int main(int argc, char** argv) { return driver::answer(argc, argv, run); }
